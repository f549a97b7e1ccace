"""Settings of the gateway, from the environment and `.env`.

They are frozen after start-up.
"""

import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from uuid import UUID

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.domain.messages import Budget
from gateway_runtime.errors import ConfigError
from gateway_runtime.placeholders import is_placeholder
from gateway_runtime.postgres_url import list_hosts
from gateway_runtime.renamed_settings import RenamedSetting, find_renamed_settings, read_parent_fd
from gateway_runtime.tls import TlsFiles

__all__ = ["ConfigError", "Settings", "is_loopback", "list_renamed_settings", "load_settings"]

_SECRETS = ("api_key", "jwt_secret", "tools_server_secret", "groq_api_key", "gateway_encryption_key")
MIN_API_KEY_LENGTH = 16
MIN_JWT_SECRET_LENGTH = 32
_SHARED_KEY_ALGORITHMS = {"HS256", "HS384", "HS512"}
_PUBLIC_KEY_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
DEFAULT_MODEL = "openai/gpt-oss-120b"
CommaSeparated = Annotated[tuple[str, ...], NoDecode]


RENAMED_SETTINGS = {
    "MODEL_PATIENCE": "MODEL_RETRY_MAX_WAIT",
    "GROQ_RECORD": "MODEL_RECORD_DIR",
    "GATEWAY_LIFELINE": "GATEWAY_PARENT_FD",
}
"""Old environment names, and the names that replace them.

Old names are still accepted.
"""


class Settings(BaseSettings):
    """Settings of the gateway.

    The environment variable of a field's name sets it, or an alias that the field lists.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8000, ge=0, le=65535)
    gateway_data_dir: Path = Path(".data")
    gateway_allow_anonymous: bool = False
    gateway_public_url: str | None = None
    gateway_tls_cert_file: Path | None = None
    gateway_tls_key_file: Path | None = None
    gateway_tls_key_password: SecretStr | None = None
    gateway_encryption_key: SecretStr | None = Field(default=None, min_length=16)
    gateway_workers: int = Field(
        default=1, ge=1, le=64, validation_alias=AliasChoices("GATEWAY_WORKERS", "WEB_CONCURRENCY")
    )
    gateway_parent_fd: Annotated[int | None, BeforeValidator(read_parent_fd)] = Field(
        default=None, ge=0, validation_alias=AliasChoices("GATEWAY_PARENT_FD", "GATEWAY_LIFELINE")
    )
    gateway_worker_id: UUID | None = None
    api_key: SecretStr | None = None
    cors_origins: CommaSeparated = ()
    trusted_hosts: CommaSeparated = ()
    jwt_secret: SecretStr | None = None
    jwt_jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_algorithms: CommaSeparated = ()
    jwt_role_claim: str = "role"
    jwt_scope_claim: str | None = None
    jwt_leeway_seconds: float = Field(default=10.0, ge=0, le=300)

    rate_limit_enabled: bool = True
    rate_limit_requests: int = Field(default=600, ge=1)
    rate_limit_window_seconds: int = Field(default=60, ge=1, le=86_400)
    rate_limit_chat_requests: int | None = Field(default=None, ge=1)
    rate_limit_tools_requests: int | None = Field(default=None, ge=1)
    rate_limit_mcp_requests: int | None = Field(default=None, ge=1)
    rate_limit_streams: int = Field(default=500, ge=1)
    redis_url: SecretStr | None = None
    redis_timeout_seconds: float = Field(default=0.5, gt=0, le=60)
    budget_tokens_per_day: int | None = Field(default=None, ge=0)
    budget_tokens_per_month: int | None = Field(default=None, ge=0)
    budget_usd_per_day: float | None = Field(default=None, ge=0)
    budget_usd_per_month: float | None = Field(default=None, ge=0)

    database_url: str | None = Field(default=None, repr=False)
    postgres_host: str | None = None
    postgres_port: int = 5432
    postgres_user: str = "postgres"
    postgres_password: SecretStr | None = None
    postgres_db: str = "agent_gateway"
    database_pool_size: int = Field(default=5, ge=1, le=200)
    database_wait_seconds: float = Field(default=5.0, ge=0)
    database_statement_timeout_seconds: float = Field(default=6.0, ge=0, le=600)
    database_lock_timeout_seconds: float = Field(default=3.0, ge=0, le=600)
    database_silence_timeout_seconds: float = Field(default=8.0, ge=0, le=600)
    migrate_on_start: bool = False
    journal_flush_ms: float = Field(default=50.0, ge=1, le=10_000)
    synchronous_journal: bool = False
    storage_retry_seconds: float = Field(default=10.0, gt=0, le=600)
    journal_retention_days: float = Field(default=30.0, gt=0)
    input_expiry_days: float = Field(default=7.0, gt=0)
    heartbeat_seconds: float = Field(default=2.0, gt=0, le=60)
    heartbeat_timeout_seconds: float | None = Field(default=None, gt=0, le=600)

    groq_api_key: SecretStr | None = None
    groq_base_url: str = "https://api.groq.com"
    groq_simulated: bool = False
    model_record_dir: Path | None = Field(
        default=None, validation_alias=AliasChoices("MODEL_RECORD_DIR", "GROQ_RECORD")
    )
    simulator_replay: Path | None = None
    groq_default_model: str = Field(
        default=DEFAULT_MODEL, validation_alias=AliasChoices("GROQ_DEFAULT_MODEL", "GROQ_MODEL")
    )
    groq_temperature: float | None = Field(default=None, ge=0, le=2)
    groq_max_tokens: int | None = Field(default=None, ge=1)
    groq_top_p: float | None = Field(default=None, ge=0, le=1)
    groq_reasoning_effort: str | None = None
    groq_reasoning_format: str | None = None
    openai_api_key: SecretStr | None = None
    openai_base_url: str = "https://api.openai.com/v1"
    openai_default_model: str = Field(
        default="gpt-5-mini", validation_alias=AliasChoices("OPENAI_DEFAULT_MODEL", "OPENAI_MODEL")
    )
    model_aliases: bool = True
    model_fallbacks: CommaSeparated = ()
    model_retries: int = Field(default=2, ge=0, le=10)
    model_retry_delay: float = Field(default=0.5, ge=0, le=60)
    model_retry_max_wait: float = Field(
        default=10.0, ge=0, le=600, validation_alias=AliasChoices("MODEL_RETRY_MAX_WAIT", "MODEL_PATIENCE")
    )
    model_queue_seconds: float = Field(default=30.0, ge=0, le=3_600)
    model_idle_timeout: float = Field(default=60.0, gt=0)

    mcp_config: Path | None = None
    mcp_server_url: str | None = None
    mcp_session_idle_seconds: float = Field(default=1_800.0, gt=0, le=86_400)
    mcp_max_sessions: int = Field(default=1_000, ge=1)
    mcp_max_user_sessions: int = Field(default=100, ge=1)
    tools_server_port: int = Field(default=8001, ge=0, le=65535)
    tools_server_secret: SecretStr | None = None
    tool_timeout: float = Field(default=60.0, gt=0)
    tool_parallelism: int = Field(default=8, ge=1, le=128)
    tool_token_budget: int = Field(default=24_000, ge=500)
    tool_result_max_chars: int = Field(default=32_000, ge=1_000)
    tools_deny: CommaSeparated = ()

    agent_timeout: float = Field(default=120.0, gt=0)
    agent_max_steps: int = Field(default=10, ge=1, le=100)
    agent_max_tokens: int = Field(default=200_000, ge=1)
    agent_batch_tool: bool = False
    agent_system_prompt: str | None = None
    redaction_rules: Path | None = None
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    max_messages: int = Field(default=500, ge=1)
    max_message_chars: int = Field(default=400_000, ge=1)
    turn_max_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    max_running_turns: int = Field(default=2_000, ge=1)
    shed_lag_seconds: float | None = Field(default=1.0, gt=0)
    shed_memory_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)
    shutdown_grace_seconds: float = Field(default=4.0, ge=0, le=300)

    log_json: bool | None = None
    log_level: str = "INFO"
    debug: bool = False

    @field_validator("cors_origins", "model_fallbacks", "jwt_algorithms", "tools_deny", "trusted_hosts", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("gateway_public_url")
    @classmethod
    def _validate_public_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must be a URL such as https://gateway.example.com")
        return value

    @model_validator(mode="after")
    def _validate_certificate_and_key(self) -> Self:
        has_certificate, has_key = self.gateway_tls_cert_file is not None, self.gateway_tls_key_file is not None
        if has_key and not has_certificate:
            raise ValueError("GATEWAY_TLS_CERT_FILE: must be set because GATEWAY_TLS_KEY_FILE is")
        if has_certificate and not has_key:
            raise ValueError("GATEWAY_TLS_KEY_FILE: must be set because GATEWAY_TLS_CERT_FILE is")
        if self.gateway_tls_key_password is not None and not has_key:
            raise ValueError("GATEWAY_TLS_KEY_PASSWORD: there is no GATEWAY_TLS_KEY_FILE to decrypt")
        return self

    @model_validator(mode="after")
    def _validate_jwt_settings(self) -> Self:
        """Require an issuer, an audience and fitting algorithms.

        The algorithms must fit the kind of key.
        """
        if self.jwt_secret is None and self.jwt_jwks_url is None:
            return self
        if self.jwt_secret is not None and self.jwt_jwks_url is not None:
            raise ValueError("JWT_SECRET and JWT_JWKS_URL: set one of them")
        if self.jwt_secret is not None and len(self.jwt_secret.get_secret_value()) < MIN_JWT_SECRET_LENGTH:
            raise ValueError(f"JWT_SECRET: must have at least {MIN_JWT_SECRET_LENGTH} characters")
        if self.jwt_jwks_url is not None and not self.jwt_jwks_url.startswith(("http://", "https://")):
            raise ValueError("JWT_JWKS_URL: must start with http:// or https://")
        if not self.jwt_issuer or not self.jwt_audience:
            raise ValueError(
                "JWT_ISSUER and JWT_AUDIENCE: both are required, or tokens for other services would be accepted"
            )
        supported = _SHARED_KEY_ALGORITHMS if self.jwt_secret is not None else _PUBLIC_KEY_ALGORITHMS
        if not set(self.jwt_algorithms) <= supported:
            raise ValueError(f"JWT_ALGORITHMS: only {', '.join(sorted(supported))} fit this kind of key")
        return self

    @field_validator("redis_url")
    @classmethod
    def _validate_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be a Redis URL such as redis://host:6379/0")
        return value

    @field_validator(*_SECRETS)
    @classmethod
    def _reject_placeholder_secret(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse secrets from examples, which are public."""
        if value is not None and is_placeholder(value.get_secret_value()):
            raise ValueError("is a placeholder: set a secret of your own, for example from `openssl rand -hex 32`")
        return value

    @field_validator("api_key")
    @classmethod
    def _validate_api_key_length(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < MIN_API_KEY_LENGTH:
            raise ValueError(f"must have at least {MIN_API_KEY_LENGTH} characters")
        return value

    @model_validator(mode="after")
    def _reject_placeholder_openai_key(self) -> Self:
        """Refuse a placeholder for OpenAI itself.

        Other servers accept any key, such as `none`.
        """
        key, host = self.openai_api_key, urlsplit(self.openai_base_url).hostname
        if host == "api.openai.com" and key is not None and is_placeholder(key.get_secret_value()):
            raise ValueError("OPENAI_API_KEY: is a placeholder: set the key that OpenAI issued to you")
        return self

    @model_validator(mode="after")
    def _reject_placeholder_database_password(self) -> Self:
        """Refuse a placeholder password, except for a database on this machine."""
        if (url := self.postgres_url) is None:
            return self
        is_remote = any(host and not host.startswith("/") and not is_loopback(host) for host, _ in list_hosts(url))
        if is_remote and is_placeholder(unquote(urlsplit(url).password or "")):
            setting = "DATABASE_URL: its password" if self.database_url is not None else "POSTGRES_PASSWORD:"
            raise ValueError(
                f"{setting} is a placeholder: set one of your own, for example from `openssl rand -hex 32`"
            )
        return self

    @model_validator(mode="after")
    def _validate_redaction_with_journal(self) -> Self:
        if self.redaction_rules is not None and self.synchronous_journal:
            raise ValueError("REDACTION_RULES: not with SYNCHRONOUS_JOURNAL, which stores texts in small pieces")
        return self

    @model_validator(mode="after")
    def _validate_heartbeat_timeout(self) -> Self:
        timeout, interval = self.heartbeat_timeout_seconds, self.heartbeat_seconds
        if timeout is not None and timeout < 2 * interval:
            raise ValueError(f"HEARTBEAT_TIMEOUT_SECONDS: must be at least {2 * interval:g}, twice HEARTBEAT_SECONDS")
        return self

    @field_validator("groq_base_url")
    @classmethod
    def _normalize_groq_base_url(cls, value: str) -> str:
        """Remove `/openai/v1`, which the SDK appends itself."""
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/").removesuffix("/openai/v1").rstrip("/")

    @field_validator("openai_base_url")
    @classmethod
    def _normalize_openai_base_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must be a URL such as http://127.0.0.1:11434/v1")
        return value.rstrip("/")

    @field_validator("mcp_server_url")
    @classmethod
    def _normalize_mcp_server_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://127.0.0.1:8001/mcp")
        return urlunsplit(parts._replace(path="/mcp")) if parts.path in ("", "/") else value

    @field_validator("database_url")
    @classmethod
    def _normalize_database_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, separator, rest = value.partition("://")
        url = f"postgresql+asyncpg://{rest}"
        try:
            list_hosts(url)
        except ValueError:
            separator = ""
        if not separator or scheme.split("+")[0] not in ("postgres", "postgresql"):
            raise ValueError("must be a PostgreSQL URL such as postgresql://user:password@host:5432/database")
        return url

    @model_validator(mode="after")
    def _validate_database_timeouts(self) -> Self:
        """Require PostgreSQL to end a statement before the gateway closes the connection."""
        statement, silence = self.database_statement_timeout_seconds, self.database_silence_timeout_seconds
        if silence and not 0 < statement < silence:
            raise ValueError(
                "DATABASE_STATEMENT_TIMEOUT_SECONDS: must be shorter than DATABASE_SILENCE_TIMEOUT_SECONDS"
            )
        return self

    @field_validator("log_level")
    @classmethod
    def _normalize_log_level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return value.upper()

    @property
    def provider(self) -> Literal["groq", "openai"] | None:
        """The provider whose key is set.

        None without a key, where the simulated Groq serves.
        """
        if self.groq_api_key is not None:
            return "groq"
        return "openai" if self.openai_api_key is not None else None

    @property
    def tls_files(self) -> TlsFiles | None:
        """The certificate and key for https; None for plain http."""
        if self.gateway_tls_cert_file is None or self.gateway_tls_key_file is None:
            return None
        password = self.gateway_tls_key_password.get_secret_value() if self.gateway_tls_key_password else None
        return TlsFiles(self.gateway_tls_cert_file, self.gateway_tls_key_file, password, "GATEWAY_TLS")

    @property
    def default_model(self) -> str:
        return self.openai_default_model if self.provider == "openai" else self.groq_default_model

    @property
    def public_url(self) -> str:
        """The gateway's URL for browsers, without a trailing slash."""
        return self.gateway_public_url.rstrip("/") if self.gateway_public_url is not None else self.local_url

    @property
    def local_host(self) -> str:
        """The host name that reaches the gateway from this machine."""
        return "127.0.0.1" if self.gateway_host in ("0.0.0.0", "::") else self.gateway_host  # noqa: S104

    @property
    def local_url(self) -> str:
        """The gateway's URL for this machine."""
        host = f"[{self.local_host}]" if ":" in self.local_host else self.local_host
        return f"{'https' if self.gateway_tls_cert_file else 'http'}://{host}:{self.gateway_port}"

    @property
    def postgres_url(self) -> str | None:
        """SQLAlchemy's URL of Postgres, with asyncpg; None where the embedded Postgres serves."""
        if self.database_url is not None:
            return self.database_url
        if self.postgres_host is None:
            return None
        password = f":{quote(self.postgres_password.get_secret_value(), safe='')}" if self.postgres_password else ""
        hosts = ",".join(f"{host.strip()}:{self.postgres_port}" for host in self.postgres_host.split(","))
        return (
            f"postgresql+asyncpg://{quote(self.postgres_user, safe='')}{password}"
            f"@{hosts}/{quote(self.postgres_db, safe='')}"
        )

    @property
    def user_budget(self) -> Budget:
        """Budget of each user."""
        return Budget(
            self.budget_tokens_per_day,
            self.budget_tokens_per_month,
            self.budget_usd_per_day,
            self.budget_usd_per_month,
        )

    @property
    def json_logs(self) -> bool:
        """Return whether logs are JSON.

        LOG_JSON decides; by default, logs are JSON unless standard error is a terminal.
        """
        return not sys.stderr.isatty() if self.log_json is None else self.log_json

    @property
    def effective_log_level(self) -> str:
        return "DEBUG" if self.debug else self.log_level


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment and `.env`; `overrides` win.

    Raises:
        ConfigError: a value is not valid. The message names each variable and its problem.
    """
    try:
        return Settings(**overrides)  # pyright: ignore[reportArgumentType] - pydantic checks the values
    except ValidationError as error:
        raise ConfigError("\n".join(_format_problem(problem) for problem in error.errors())) from None


def list_renamed_settings() -> list[RenamedSetting]:
    """List the old names in use, to be logged."""
    return find_renamed_settings(RENAMED_SETTINGS)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is a loopback one."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _format_problem(problem: ErrorDetails) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    return f"{str(problem['loc'][0]).upper()}: {message}" if problem["loc"] else message
