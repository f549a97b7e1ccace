"""Encryption of stored secrets, such as tokens of other services."""

import base64
import hashlib
import os
import secrets

from cryptography.fernet import Fernet, InvalidToken

from gateway.config import ConfigError, Settings

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
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as output:
            output.write(secrets.token_urlsafe(32))
        try:
            os.link(draft, file)  # of several processes, the first to link the file determines the key
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        return file.read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"GATEWAY_DATA_DIR: the key file {file} cannot be created or read: {error.strerror}"
        ) from None
