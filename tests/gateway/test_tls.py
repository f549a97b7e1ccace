"""The certificate that the gateway serves https with."""

import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.config import ConfigError, Settings, load_settings
from gateway_runtime import tls
from tests.certificates import Certificate, self_signed


def settings_for(made: Certificate, **more: Any) -> Settings:
    return load_settings(_env_file=None, gateway_tls_cert_file=made.cert, gateway_tls_key_file=made.key, **more)


def test_certificate_and_key_become_uvicorn_options(tmp_path: Path) -> None:
    assert tls.build_server_options(load_settings(_env_file=None).tls_files) == {}
    assert tls.build_client_context(load_settings(_env_file=None).tls_files) is None
    made = self_signed(tmp_path, password="of the test")
    settings = settings_for(made, gateway_tls_key_password="of the test")
    assert tls.build_server_options(settings.tls_files) == {
        "ssl_certfile": made.cert,
        "ssl_keyfile": made.key,
        "ssl_keyfile_password": "of the test",
    }
    assert "of the test" not in repr(settings)
    assert settings.local_url == settings.public_url == "https://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"gateway_tls_cert_file": "c.pem"}, "GATEWAY_TLS_KEY_FILE: must be set where GATEWAY_TLS_CERT_FILE is"),
        ({"gateway_tls_key_file": "k.pem"}, "GATEWAY_TLS_CERT_FILE: must be set where GATEWAY_TLS_KEY_FILE is"),
        ({"gateway_tls_key_password": "p"}, "GATEWAY_TLS_KEY_PASSWORD: there is no GATEWAY_TLS_KEY_FILE"),
    ],
)
def test_incomplete_tls_settings_are_refused(given: dict[str, str], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        load_settings(_env_file=None, **given)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda made: made.cert.unlink(), "GATEWAY_TLS_CERT_FILE: cannot read .*: No such file"),
        (lambda made: made.key.unlink(), "GATEWAY_TLS_KEY_FILE: cannot read .*: No such file"),
        (lambda made: made.key.unlink() or made.key.mkdir(), "GATEWAY_TLS_KEY_FILE: cannot read .*: Is a directory"),
        (lambda made: made.cert.write_text("-"), "GATEWAY_TLS_CERT_FILE: .* holds no certificate in PEM"),
        (lambda made: made.key.write_text("-"), "GATEWAY_TLS_KEY_FILE: .* holds no private key in PEM"),
        (lambda made: made.key.write_bytes(made.cert.read_bytes()), "GATEWAY_TLS_KEY_FILE: .* holds no private key"),
        (
            lambda made: made.key.write_bytes(self_signed(made.cert.parent, name="other").key.read_bytes()),
            "GATEWAY_TLS_KEY_FILE: .* is not the key of the certificate in ",
        ),
    ],
    ids=["no cert", "no key", "a directory", "cert no PEM", "key no PEM", "cert as key", "another's key"],
)
def test_unusable_file_is_reported_with_its_setting(tmp_path: Path, spoil: Any, line: str) -> None:
    made = self_signed(tmp_path)
    spoil(made)
    with pytest.raises(ConfigError, match=f"^{line}"):
        tls.build_server_options(settings_for(made).tls_files)


@pytest.mark.parametrize(
    ("encrypted", "given", "line"),
    [
        ("right", None, "must be set: the key is encrypted"),
        ("right", "wrong", "does not open "),
        (None, "any", "is set, and the key is not encrypted"),
    ],
)
def test_wrong_key_password_is_refused(tmp_path: Path, encrypted: str | None, given: str | None, line: str) -> None:
    made = self_signed(tmp_path, password=encrypted)
    with pytest.raises(ConfigError, match=f"^GATEWAY_TLS_KEY_PASSWORD: {line}") as caught:
        tls.build_server_options(settings_for(made, gateway_tls_key_password=given).tls_files)
    assert "right" not in str(caught.value)


def test_expired_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^GATEWAY_TLS_CERT_FILE: .*: the certificate expired on "):
        tls.build_server_options(settings_for(self_signed(tmp_path, days=-1)).tls_files)


def test_local_client_trusts_only_the_configured_certificate(tmp_path: Path) -> None:
    made, other = self_signed(tmp_path, name="gateway.example"), self_signed(tmp_path, name="evil.example")
    trusted = tls.build_client_context(settings_for(made).tls_files)
    assert trusted is not None
    assert handshake(made, trusted) == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other, trusted)


def handshake(server: Certificate, trusted: ssl.SSLContext) -> bytes:
    """What a client hears of a server, over memory alone."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.cert, server.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = trusted.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    theirs = serving.wrap_bio(to_server, to_client, server_side=True)
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    theirs.write(b"hello")
    return ours.read()
