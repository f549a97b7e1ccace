"""Encryption of stored secrets, such as tokens of other services."""

import base64
import hashlib
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from gateway_runtime.private_files import load_or_create_secret


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


def load_key_file(file: Path) -> list[str]:
    """Return the secrets of a key file, a line each.

    The first call creates the file with one secret.

    Raises:
        OSError: the file cannot be created or read.
    """
    lines = load_or_create_secret(file)[0].splitlines()
    return [line.strip() for line in lines if line.strip()]
