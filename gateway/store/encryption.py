"""Encryption of stored secrets, such as tokens of other services."""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken

from gateway.config import ConfigError, Settings
from gateway_runtime.private_files import load_or_create_secret

KEY_FILE = "encryption.key"


class Cipher:
    """Fernet (AES-128-CBC with HMAC-SHA-256) with a key derived from a secret."""

    def __init__(self, secret: str) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()))

    def encrypt(self, plain: bytes) -> bytes:
        return self._fernet.encrypt(plain)

    def decrypt(self, encrypted: bytes) -> bytes | None:
        """Decrypt bytes.

        Return None if another key encrypted them, or if they were changed.
        """
        try:
            return self._fernet.decrypt(encrypted)
        except InvalidToken:
            return None


def load_encryption_secret(settings: Settings) -> str:
    """Return GATEWAY_ENCRYPTION_KEY, or the secret in the data directory's key file.

    The first start without the setting creates the file.

    Raises:
        ConfigError: the key file cannot be created or read.
    """
    if settings.gateway_encryption_key is not None:
        return settings.gateway_encryption_key.get_secret_value()
    file = settings.gateway_data_dir / KEY_FILE
    try:
        return load_or_create_secret(file)[0]
    except OSError as error:
        raise ConfigError(
            f"GATEWAY_DATA_DIR: the key file {file} cannot be created or read: {error.strerror}"
        ) from None
