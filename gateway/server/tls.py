"""https with the gateway's own certificate: what uvicorn needs to serve it, and our own clients to know it."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.config import ConfigError, Settings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_CERT, _KEY, _PASSWORD = "GATEWAY_TLS_CERT_FILE", "GATEWAY_TLS_KEY_FILE", "GATEWAY_TLS_KEY_PASSWORD"


def server_options(settings: Settings) -> dict[str, Any]:
    """uvicorn's options for https; none where the settings name no certificate.

    Raises:
        ConfigError: a file cannot be read or used, they do not belong together, or the certificate has ended.
    """
    cert, key = settings.gateway_tls_cert_file, settings.gateway_tls_key_file
    if cert is None or key is None:
        return {}
    password = settings.gateway_tls_key_password.get_secret_value() if settings.gateway_tls_key_password else None
    certificate = _certificate(cert)
    if certificate.not_valid_after_utc < datetime.now(UTC):
        raise ConfigError(f"{_CERT}: {cert}: the certificate ended on {certificate.not_valid_after_utc:%Y-%m-%d}")
    if _key(key, password).public_key() != certificate.public_key():
        raise ConfigError(f"{_KEY}: {key} is not the key of the certificate in {cert}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password)
    except ssl.SSLError as error:
        raise ConfigError(f"{_CERT}: {cert} cannot be used: {error.reason.replace('_', ' ').lower()}") from None
    return {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_keyfile_password": password}


def client_context(settings: Settings) -> ssl.SSLContext | None:
    """For a client on the gateway's own machine: trusts the configured certificate and no other, whatever name it is
    for. None: the gateway speaks plain http.

    Raises:
        ConfigError: the certificate cannot be read.
    """
    if settings.gateway_tls_cert_file is None:
        return None
    from cryptography.hazmat.primitives.serialization import Encoding

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    certificate = _certificate(settings.gateway_tls_cert_file)
    context.load_verify_locations(cadata=certificate.public_bytes(Encoding.PEM).decode())
    return context


def _certificate(path: Path) -> "Certificate":
    """The first of a file, which is the server's own; those that it was issued by may follow."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(_read(path, _CERT))[0]
    except ValueError:
        raise ConfigError(f"{_CERT}: {path} holds no certificate in PEM") from None


def _key(path: Path, password: str | None) -> Any:
    from cryptography.hazmat.primitives import serialization

    data = _read(path, _KEY)
    try:
        return serialization.load_pem_private_key(data, password.encode() if password else None)
    except TypeError:  # how it says that a password is there without need, or not there
        said = "is set, and the key is not encrypted" if password else "must be set: the key is encrypted"
        raise ConfigError(f"{_PASSWORD}: {said}") from None
    except ValueError:
        if password:
            raise ConfigError(f"{_PASSWORD}: does not open {path}") from None
        raise ConfigError(f"{_KEY}: {path} holds no private key in PEM") from None


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
