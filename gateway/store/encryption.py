"""Encryption of stored secrets, such as tokens of other services."""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from gateway.config import ConfigError, Settings
from gateway_runtime.private_files import load_or_create_secret

KEY_FILE = "encryption.key"


class Cipher:
    """Fernet (AES-128-CBC with HMAC-SHA-256) with keys derived from secrets.

    The first secret encrypts; all of them decrypt.
    """

    def __init__(self, *secrets: str) -> None:
        self._fernet = MultiFernet([_derive_key(secret) for secret in secrets])

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


def _derive_key(secret: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()))


def load_encryption_secrets(settings: Settings) -> list[str]:
    """Return the current secret, then older ones that still decrypt.

    They are GATEWAY_ENCRYPTION_KEY, or the lines of the data directory's key file, and GATEWAY_ENCRYPTION_OLD_KEYS. The
    first start without the setting creates the file.

    Raises:
        ConfigError: the key file cannot be created or read.
    """
    older = [secret.get_secret_value() for secret in settings.gateway_encryption_old_keys]
    if settings.gateway_encryption_key is not None:
        return [settings.gateway_encryption_key.get_secret_value(), *older]
    file = settings.gateway_data_dir / KEY_FILE
    try:
        lines = load_or_create_secret(file)[0].splitlines()
    except OSError as error:
        raise ConfigError(
            f"GATEWAY_DATA_DIR: the key file {file} cannot be created or read: {error.strerror}"
        ) from None
    return [*(line.strip() for line in lines if line.strip()), *older]
