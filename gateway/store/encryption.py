"""What is encrypted before it is kept: other services' tokens."""

import base64
import hashlib
import os
import secrets

from cryptography.fernet import Fernet, InvalidToken

from gateway.config import ConfigError, Settings

KEY_FILE = "encryption.key"


class Cipher:
    """Fernet (AES-128-CBC with HMAC-SHA-256) under a key made of a secret."""

    def __init__(self, secret: str) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()))

    def encrypt(self, plain: bytes) -> bytes:
        return self._fernet.encrypt(plain)

    def decrypt(self, sealed: bytes) -> bytes | None:
        """None: it was sealed with another key, or changed."""
        try:
            return self._fernet.decrypt(sealed)
        except InvalidToken:
            return None


def cipher_from_settings(settings: Settings) -> Cipher:
    """Sealed with GATEWAY_ENCRYPTION_KEY, else with a key that is made once and kept in the data directory.

    Raises:
        ConfigError: the key's file can neither be made nor read.
    """
    if settings.gateway_encryption_key is not None:
        return Cipher(settings.gateway_encryption_key.get_secret_value())
    file = settings.gateway_data_dir / KEY_FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(f".{os.getpid()}")
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            output.write(secrets.token_urlsafe(32))
        try:
            os.link(half, file)  # whoever is first decides
        except FileExistsError:
            pass
        finally:
            half.unlink()
        return Cipher(file.read_text().strip())
    except OSError as error:
        raise ConfigError(
            f"GATEWAY_DATA_DIR: the key in {file} can neither be made nor read: {error.strerror}"
        ) from None
