"""Creation of the first API key."""

import json
import sys

from pydantic import SecretStr

from gateway.api.security.authentication import accepts_jwt
from gateway.config import ConfigError, Settings
from gateway_runtime.private_files import load_or_create_secret


def ensure_api_key(settings: Settings, *, stored_keys: bool) -> Settings:
    """Return settings with the key of API_KEY_FILE.

    The first start without any credential makes the key and prints it once.

    Raises:
        ConfigError: the file cannot be created or read.
    """
    file = settings.api_key_file
    is_configured = settings.api_key is not None or accepts_jwt(settings) or stored_keys
    if file is None or is_configured or settings.gateway_allow_anonymous:
        return settings
    try:
        key, is_new = load_or_create_secret(file)
    except OSError as error:
        raise ConfigError(f"API_KEY_FILE: {file} cannot be created or read: {error.strerror}") from None
    if is_new:
        sys.stdout.write(_format_announcement(settings, key))
        sys.stdout.flush()
    return settings.model_copy(update={"api_key": SecretStr(key)})


def _format_announcement(settings: Settings, key: str) -> str:
    body = json.dumps({"messages": [{"role": "user", "content": "What is 23*19?"}]})
    return (
        "\n"
        f"No API key is configured, so one was made. It is stored in {settings.api_key_file} and not shown again:\n"
        f"  {key}\n"
        "Try:\n"
        f"  curl -N {settings.published_url}/api/v1/chat/stream -H 'X-API-Key: {key}' \\\n"
        f"    -H 'Content-Type: application/json' -d '{body}'\n\n"
    )
