"""https with a certificate from files.

uvicorn's options, and a client context that trusts the certificate.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypedDict

from gateway_runtime.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate


class TlsOptions(TypedDict, total=False):
    """uvicorn's options for https."""

    ssl_certfile: str | Path
    ssl_keyfile: str | Path
    ssl_keyfile_password: str | None


@dataclass(frozen=True)
class TlsFiles:
    """A certificate and its key.

    `setting_prefix` begins the names of the settings, for example `GATEWAY_TLS`.
    """

    cert: Path
    key: Path
    password: str | None
    setting_prefix: str

    def check_and_build_options(
        self, report_doubt: Callable[[str], object] | None = None, *, allow_expired: bool = True
    ) -> TlsOptions:
        """Check the files and return uvicorn's options.

        `report_doubt` gets a message about files that work and are probably a mistake: an expired certificate, or a
        password for a key that is not encrypted. Without it, they are errors. An expired certificate is an error also
        without `allow_expired`.

        Raises:
            ConfigError: a file cannot be read or used, or certificate and key do not match.
        """
        report_doubt = report_doubt or _raise_config_error
        certificate = self._load_certificate()
        if certificate.not_valid_after_utc < datetime.now(UTC):
            expired = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            report_expiry = report_doubt if allow_expired else _raise_config_error
            report_expiry(f"{self.setting_prefix}_CERT_FILE: {self.cert}: the certificate expired on {expired}")
        if self._load_key(report_doubt).public_key() != certificate.public_key():
            raise ConfigError(
                f"{self.setting_prefix}_KEY_FILE: {self.key} is not the key of the certificate in {self.cert}"
            )
        self.build_server_context()
        return {"ssl_certfile": self.cert, "ssl_keyfile": self.key, "ssl_keyfile_password": self.password}

    def build_server_context(self) -> ssl.SSLContext:
        """Build a TLS context with the certificate and its issuers.

        Raises:
            ConfigError: OpenSSL cannot use the files.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An empty password instead of none: without one OpenSSL asks at the terminal.
            context.load_cert_chain(self.cert, self.key, self.password or "")
        except OSError as error:
            if not isinstance(error, ssl.SSLError):
                raise ConfigError(f"{self.setting_prefix}_CERT_FILE: cannot be read: {error.strerror}") from None
            reason = (error.reason or "unknown error").replace("_", " ").lower()
            raise ConfigError(f"{self.setting_prefix}_CERT_FILE: {self.cert} cannot be used: {reason}") from None
        except ValueError as error:  # a password over 1024 bytes
            raise ConfigError(f"{self.setting_prefix}_CERT_FILE: {self.cert} cannot be used: {error}") from None
        return context

    def build_client_context(self) -> ssl.SSLContext:
        """Build a TLS context for clients on this machine.

        It trusts this certificate alone, under any host name.

        Raises:
            ConfigError: the certificate cannot be read.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self._load_certificate().public_bytes(Encoding.PEM).decode())
        return context

    def _load_certificate(self) -> "Certificate":
        """Load the first certificate of the file.

        It is the server's own; its issuers may follow.
        """
        from cryptography import x509

        setting = f"{self.setting_prefix}_CERT_FILE"
        try:
            return x509.load_pem_x509_certificates(_read_file(self.cert, setting))[0]
        except ValueError:
            raise ConfigError(f"{setting}: {self.cert} holds no certificate in PEM") from None

    def _load_key(self, report_doubt: Callable[[str], object]) -> "PrivateKeyTypes":
        from cryptography.hazmat.primitives import serialization

        data = _read_file(self.key, f"{self.setting_prefix}_KEY_FILE")
        try:
            return serialization.load_pem_private_key(data, self.password.encode() if self.password else None)
        except TypeError:  # cryptography's way to say that a password is superfluous or missing
            if not self.password:
                raise ConfigError(f"{self.setting_prefix}_KEY_PASSWORD: must be set: the key is encrypted") from None
            report_doubt(f"{self.setting_prefix}_KEY_PASSWORD: is set, and the key is not encrypted")
            return serialization.load_pem_private_key(data, None)
        except ValueError:
            if self.password:
                raise ConfigError(f"{self.setting_prefix}_KEY_PASSWORD: does not open {self.key}") from None
            raise ConfigError(f"{self.setting_prefix}_KEY_FILE: {self.key} holds no private key in PEM") from None


class ReloadableCertificate:
    """The certificate of a listening server, which can be replaced.

    `context` is the server's. Each handshake uses the newest certificate; established connections are not touched.
    """

    def __init__(
        self, files: TlsFiles, context: ssl.SSLContext, report_doubt: Callable[[str], object] | None = None
    ) -> None:
        self._files = files
        self._current = context
        self._report_doubt = report_doubt
        context.sni_callback = self._use_current

    def reload(self) -> None:
        """Read the files again.

        Raises:
            ConfigError: they cannot be used; the certificate so far stays in use.
        """
        self._files.check_and_build_options(self._report_doubt, allow_expired=False)
        self._current = self._files.build_server_context()

    def _use_current(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current


def build_server_options(files: TlsFiles | None, report_doubt: Callable[[str], object] | None = None) -> TlsOptions:
    """Return uvicorn's options for https; none for plain http.

    `report_doubt`: see `TlsFiles.check_and_build_options`.

    Raises:
        ConfigError: see `TlsFiles.check_and_build_options`.
    """
    return files.check_and_build_options(report_doubt) if files is not None else {}


def build_client_context(files: TlsFiles | None) -> ssl.SSLContext | None:
    """Return a TLS context for clients on this machine.

    Return None for plain http.

    Raises:
        ConfigError: the certificate cannot be read.
    """
    return files.build_client_context() if files is not None else None


def _raise_config_error(message: str) -> NoReturn:
    raise ConfigError(message)


def _read_file(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None
