"""The secrets that encrypt what the gateway stores."""

from gateway.config import ConfigError, Settings
from gateway_runtime.settings.encryption import Cipher, load_key_file

__all__ = ["KEY_FILE", "Cipher", "load_encryption_secrets"]

KEY_FILE = "encryption.key"


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
        return [*load_key_file(file), *older]
    except OSError as error:
        raise ConfigError(
            f"GATEWAY_DATA_DIR: the key file {file} cannot be created or read: {error.strerror}"
        ) from None
