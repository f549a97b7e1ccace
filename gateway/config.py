"""Settings of the gateway, from the environment and `.env`.

They are frozen after start-up.
"""

from pydantic import SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsConfigDict

from gateway.settings.access import AccessSettings
from gateway.settings.agent import AgentSettings
from gateway.settings.console import ConsoleLinkSettings
from gateway.settings.images import ImageSettings
from gateway.settings.limits import LimitSettings
from gateway.settings.models import ModelSettings
from gateway.settings.observation import ObservationSettings
from gateway.settings.server import ServerSettings
from gateway.settings.storage import StorageSettings
from gateway.settings.upstream import UpstreamSettings
from gateway.settings.values import LOCAL_HOSTS, is_loopback
from gateway.settings.webhooks import WebhookSettings
from gateway_runtime.errors import ConfigError
from gateway_runtime.placeholders import is_placeholder
from gateway_runtime.private_files import read_secret
from gateway_runtime.renamed_settings import RenamedSetting, find_renamed_settings
from gateway_runtime.settings.hosts import normalize_host_pattern

__all__ = ["ConfigError", "Settings", "list_renamed_settings", "load_settings"]

_SECRETS = ("api_key", "jwt_secret", "tools_server_secret", "gateway_encryption_key")

RENAMED_SETTINGS = {
    "MODEL_PATIENCE": "MODEL_RETRY_MAX_WAIT",
    "GROQ_RECORD": "MODEL_RECORD_DIR",
    "GATEWAY_LIFELINE": "GATEWAY_PARENT_FD",
}
"""Old environment names, and the names that replace them.

Old names are still accepted.
"""


class Settings(
    AgentSettings,
    ModelSettings,
    LimitSettings,
    StorageSettings,
    AccessSettings,
    WebhookSettings,
    UpstreamSettings,
    ImageSettings,
    ServerSettings,
    ObservationSettings,
    ConsoleLinkSettings,
):
    """Settings of the gateway. `gateway/settings/` has the fields by topic.

    The environment variable of a field's name sets it, or an alias that the field lists.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    def list_trusted_hosts(self) -> tuple[str, ...]:
        """List the patterns of accepted host names; empty: any.

        That of GATEWAY_PUBLIC_URL is always one of them.
        """
        hosts = self.trusted_hosts
        if not hosts and is_loopback(self.gateway_host):
            hosts = (*LOCAL_HOSTS, normalize_host_pattern(self.gateway_host))
        return (*hosts, normalize_host_pattern(self.public_origin)) if hosts and self.public_origin else hosts

    @field_validator(*_SECRETS)
    @classmethod
    def _reject_placeholder_secret(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse secrets from examples, which are public."""
        if value is not None and is_placeholder(value.get_secret_value()):
            raise ValueError("is a placeholder: set a secret of your own, for example from `openssl rand -hex 32`")
        return value


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment and `.env`; `overrides` win.

    Raises:
        ConfigError: a value is not valid. The message names each variable and its problem.
    """
    try:
        settings = Settings(**overrides)  # pyright: ignore[reportArgumentType] - pydantic checks the values
        if (key := _read_api_key_file(settings)) is not None:
            return Settings(**{**overrides, "api_key": SecretStr(key)})  # pyright: ignore[reportArgumentType]
        return settings
    except ValidationError as error:
        raise ConfigError("\n".join(_format_problem(problem) for problem in error.errors())) from None


def _read_api_key_file(settings: Settings) -> str | None:
    """Read the key of API_KEY_FILE.

    Return None without that file, and where API_KEY or GATEWAY_ALLOW_ANONYMOUS is set.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = settings.api_key_file
    if settings.api_key is not None or settings.gateway_allow_anonymous or file is None or not file.exists():
        return None
    try:
        return read_secret(file)
    except OSError as error:
        raise ConfigError(f"API_KEY_FILE: cannot read {file}: {error.strerror}") from None


def list_renamed_settings() -> list[RenamedSetting]:
    """List the old names in use, to be logged."""
    return find_renamed_settings(RENAMED_SETTINGS)


def _format_problem(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    return f"{str(problem['loc'][0]).upper()}: {message}" if problem["loc"] else message
