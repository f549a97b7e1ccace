"""Encryption of the secrets of defined tools."""

import structlog

from gateway_runtime.settings.encryption import Cipher, load_key_file
from tools_server.config import Settings
from tools_server.http_tools.errors import DefinitionError

log = structlog.stdlib.get_logger(__name__)

KEY_FILE = "tools-encryption.key"


class SecretCipher:
    """Encrypts with TOOLS_ENCRYPTION_KEY, or with the key file of the data directory.

    The first start without the setting creates the file. Keys of TOOLS_ENCRYPTION_OLD_KEYS still decrypt.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cipher: Cipher | None = None

    def load(self) -> Cipher | None:
        """Load the key once; None without a usable key file."""
        if self._cipher is None:
            key, file = self._settings.tools_encryption_key, self._settings.gateway_data_dir / KEY_FILE
            try:
                current = load_key_file(file) if key is None else [key.get_secret_value()]
            except OSError as error:
                log.warning("encryption_key_unavailable", setting="TOOLS_ENCRYPTION_KEY", error=type(error).__name__)
                return None
            older = (secret.get_secret_value() for secret in self._settings.tools_encryption_old_keys)
            self._cipher = Cipher(*current, *older)
        return self._cipher

    def encrypt(self, secret: str) -> bytes:
        """Raises:
        DefinitionError: there is no key.
        """
        cipher = self.load()
        if cipher is None:
            message = "The tool server can store no secrets: set TOOLS_ENCRYPTION_KEY."
            raise DefinitionError(503, "secrets_unavailable", message)
        return cipher.encrypt(secret.encode())

    def decrypt(self, encrypted: bytes) -> str | None:
        """Decrypt a secret; None without the key that encrypted it."""
        cipher = self.load()
        plain = None if cipher is None else cipher.decrypt(encrypted)
        return None if plain is None else plain.decode()

    def reencrypt(self, encrypted: bytes) -> bytes | None:
        """Encrypt a secret again, with the current key.

        None: no key decrypts it.
        """
        cipher = self.load()
        plain = None if cipher is None else cipher.decrypt(encrypted)
        return None if cipher is None or plain is None else cipher.encrypt(plain)
