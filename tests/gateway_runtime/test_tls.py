"""Tests of the TLS settings of server and local clients."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import ConfigError, Settings, load_settings
from gateway_runtime import tls
from tests.certificates import Certificate, create_certificate


def load_tls_settings(certificate: Certificate, **settings: object) -> Settings:
    return load_settings(
        _env_file=None, gateway_tls_cert_file=certificate.cert, gateway_tls_key_file=certificate.key, **settings
    )


def test_certificate_and_key_become_uvicorn_options(tmp_path: Path) -> None:
    assert tls.build_server_options(load_settings(_env_file=None).tls_files) == {}
    assert tls.build_client_context(load_settings(_env_file=None).tls_files) is None
    certificate = create_certificate(tmp_path, password="key-password")
    settings = load_tls_settings(certificate, gateway_tls_key_password="key-password")
    assert tls.build_server_options(settings.tls_files) == {
        "ssl_certfile": certificate.cert,
        "ssl_keyfile": certificate.key,
        "ssl_keyfile_password": "key-password",
    }
    assert "key-password" not in repr(settings)
    assert settings.local_url == settings.public_url == "https://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gateway_tls_cert_file": "c.pem"}, "GATEWAY_TLS_KEY_FILE: must be set because GATEWAY_TLS_CERT_FILE is"),
        ({"gateway_tls_key_file": "k.pem"}, "GATEWAY_TLS_CERT_FILE: must be set because GATEWAY_TLS_KEY_FILE is"),
        ({"gateway_tls_key_password": "p"}, "GATEWAY_TLS_KEY_PASSWORD: there is no GATEWAY_TLS_KEY_FILE"),
    ],
)
def test_incomplete_tls_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        load_settings(_env_file=None, **settings)


@pytest.mark.parametrize(
    ("break_files", "message"),
    [
        (lambda certificate: certificate.cert.unlink(), "GATEWAY_TLS_CERT_FILE: cannot read .*: No such file"),
        (lambda certificate: certificate.key.unlink(), "GATEWAY_TLS_KEY_FILE: cannot read .*: No such file"),
        (
            lambda certificate: certificate.key.unlink() or certificate.key.mkdir(),
            "GATEWAY_TLS_KEY_FILE: cannot read .*: Is a directory",
        ),
        (lambda certificate: certificate.cert.write_text("-"), "GATEWAY_TLS_CERT_FILE: .* holds no certificate in PEM"),
        (lambda certificate: certificate.key.write_text("-"), "GATEWAY_TLS_KEY_FILE: .* holds no private key in PEM"),
        (
            lambda certificate: certificate.key.write_bytes(certificate.cert.read_bytes()),
            "GATEWAY_TLS_KEY_FILE: .* holds no private key",
        ),
        (
            lambda certificate: certificate.key.write_bytes(
                create_certificate(certificate.cert.parent, name="other").key.read_bytes()
            ),
            "GATEWAY_TLS_KEY_FILE: .* is not the key of the certificate in ",
        ),
    ],
    ids=["no-cert", "no-key", "directory-as-key", "invalid-cert", "invalid-key", "cert-as-key", "key-of-another-cert"],
)
def test_unusable_file_is_reported_with_its_setting(
    tmp_path: Path, break_files: Callable[[Certificate], object], message: str
) -> None:
    certificate = create_certificate(tmp_path)
    break_files(certificate)
    with pytest.raises(ConfigError, match=f"^{message}"):
        tls.build_server_options(load_tls_settings(certificate).tls_files)


@pytest.mark.parametrize(
    ("key_password", "password", "message"),
    [
        ("right", None, "must be set: the key is encrypted"),
        ("right", "wrong", "does not open "),
        (None, "any", "is set, and the key is not encrypted"),
    ],
)
def test_wrong_key_password_is_refused(
    tmp_path: Path, key_password: str | None, password: str | None, message: str
) -> None:
    certificate = create_certificate(tmp_path, password=key_password)
    with pytest.raises(ConfigError, match=f"^GATEWAY_TLS_KEY_PASSWORD: {message}") as error:
        tls.build_server_options(load_tls_settings(certificate, gateway_tls_key_password=password).tls_files)
    assert "right" not in str(error.value)


def test_expired_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^GATEWAY_TLS_CERT_FILE: .*: the certificate expired on "):
        tls.build_server_options(load_tls_settings(create_certificate(tmp_path, days=-1)).tls_files)


def test_local_client_trusts_only_the_configured_certificate(tmp_path: Path) -> None:
    certificate, other = (
        create_certificate(tmp_path, name="gateway.example"),
        create_certificate(tmp_path, name="evil.example"),
    )
    client_context = tls.build_client_context(load_tls_settings(certificate).tls_files)
    assert client_context is not None
    assert read_over_tls(certificate, client_context) == b"hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        read_over_tls(other, client_context)


def read_over_tls(certificate: Certificate, client_context: ssl.SSLContext) -> bytes:
    """Read a message of a server with that certificate, over in-memory buffers."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificate.cert, certificate.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    server.write(b"hello")
    return client.read()
