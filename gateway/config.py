"""Settings of the gateway, from the environment and `.env`. Frozen: nothing changes them after start-up."""

import re
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_SECRETS = ("api_key", "jwt_secret", "tools_server_secret", "groq_api_key", "gateway_encryption_key")
_PLACEHOLDER = re.compile(
    r"<.*>|.*(\.{3}|…|\*{3})|([a-z]{1,9}[-_]){0,3}x{3,}"
    r"|(your|my|insert|enter|add)[-_ ].*(key|secret|token|password)([-_ ]here)?"
    r"|.*change[-_ ]?me.*|replace[-_ ]?(me|this)|placeholder"
    r"|secret|password|api[-_ ]?key|example|default|admin|none|null",
    re.IGNORECASE,
)
_SHORTEST_API_KEY = 16
_SHORTEST_JWT_SECRET = 32
_SHARED_ALGORITHMS = {"HS256", "HS384", "HS512"}
_PUBLIC_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
DEFAULT_MODEL = "openai/gpt-oss-120b"
CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class ConfigError(Exception):
    """The environment does not make sense. `str()` is for the terminal: a line for each broken value, no secret."""


class Settings(BaseSettings):
    """Every field can be set by the environment variable of its name; those with aliases say which."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

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
    gateway_lifeline: str | None = None
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
    migrate_on_start: bool = False
    journal_flush_ms: float = Field(default=50.0, ge=1, le=10_000)
    synchronous_journal: bool = False
    journal_retention_days: float = Field(default=30.0, gt=0)
    input_expiry_days: float = Field(default=7.0, gt=0)
    heartbeat_seconds: float = Field(default=2.0, gt=0, le=60)

    groq_api_key: SecretStr | None = None
    groq_base_url: str = "https://api.groq.com"
    groq_simulated: bool = False
    groq_record: Path | None = None
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
    model_patience: float = Field(default=10.0, ge=0, le=600)
    model_queue_seconds: float = Field(default=30.0, ge=0, le=3_600)
    model_idle_timeout: float = Field(default=60.0, gt=0)

    mcp_config: Path | None = None
    mcp_server_url: str | None = None
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
    max_running_turns: int = Field(default=2_000, ge=1)
    shutdown_grace_seconds: float = Field(default=4.0, ge=0, le=300)

    log_json: bool | None = None
    log_level: str = "INFO"
    debug: bool = False

    @field_validator("cors_origins", "model_fallbacks", "jwt_algorithms", "tools_deny", "trusted_hosts", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("gateway_public_url")
    @classmethod
    def _browsers_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must be a URL such as https://gateway.example.com")
        return value

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        names = ("GATEWAY_TLS_CERT_FILE", "GATEWAY_TLS_KEY_FILE")
        given = (self.gateway_tls_cert_file is not None, self.gateway_tls_key_file is not None)
        if given[0] != given[1]:
            raise ValueError(f"{names[given[0]]}: must be set where {names[given[1]]} is")
        if self.gateway_tls_key_password is not None and not given[1]:
            raise ValueError("GATEWAY_TLS_KEY_PASSWORD: there is no GATEWAY_TLS_KEY_FILE that it could open")
        return self

    @model_validator(mode="after")
    def _tokens_are_bound(self) -> Self:
        """A token is only taken from one issuer, for this audience, signed in a way that its key is meant for."""
        if self.jwt_secret is None and self.jwt_jwks_url is None:
            return self
        if self.jwt_secret is not None and self.jwt_jwks_url is not None:
            raise ValueError("JWT_SECRET and JWT_JWKS_URL: set one of them")
        if self.jwt_secret is not None and len(self.jwt_secret.get_secret_value()) < _SHORTEST_JWT_SECRET:
            raise ValueError(f"JWT_SECRET: must have at least {_SHORTEST_JWT_SECRET} characters")
        if self.jwt_jwks_url is not None and not self.jwt_jwks_url.startswith(("http://", "https://")):
            raise ValueError("JWT_JWKS_URL: must start with http:// or https://")
        if not self.jwt_issuer or not self.jwt_audience:
            raise ValueError("JWT_ISSUER and JWT_AUDIENCE: both are needed, or tokens made for others would be taken")
        known = _SHARED_ALGORITHMS if self.jwt_secret is not None else _PUBLIC_ALGORITHMS
        if not set(self.jwt_algorithms) <= known:
            raise ValueError(f"JWT_ALGORITHMS: only {', '.join(sorted(known))} go with this kind of key")
        return self

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be a Redis URL such as redis://host:6379/0")
        return value

    @field_validator(*_SECRETS)
    @classmethod
    def _is_no_placeholder(cls, value: SecretStr | None) -> SecretStr | None:
        """What stands in examples is known to everyone."""
        if value is not None and _is_placeholder(value.get_secret_value()):
            raise ValueError("is a placeholder: set a secret of your own, for example from `openssl rand -hex 32`")
        return value

    @field_validator("api_key")
    @classmethod
    def _is_not_guessed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _SHORTEST_API_KEY:
            raise ValueError(f"must have at least {_SHORTEST_API_KEY} characters")
        return value

    @model_validator(mode="after")
    def _openais_key_is_no_placeholder(self) -> Self:
        """Servers of one's own take any key, so there `none` or `xxx` will do."""
        theirs = urlsplit(self.openai_base_url).hostname == "api.openai.com"
        if theirs and self.openai_api_key is not None and _is_placeholder(self.openai_api_key.get_secret_value()):
            raise ValueError("OPENAI_API_KEY: is a placeholder: set the key that OpenAI gave you")
        return self

    @model_validator(mode="after")
    def _database_of_others_has_no_placeholder(self) -> Self:
        """On this machine it is a developer's, and nobody else reaches it."""
        if (url := self.postgres_url) is None:
            return self
        parts = urlsplit(url)
        if parts.hostname and not is_loopback(parts.hostname) and _is_placeholder(unquote(parts.password or "")):
            setting = "DATABASE_URL: its password" if self.database_url is not None else "POSTGRES_PASSWORD:"
            raise ValueError(
                f"{setting} is a placeholder: set one of your own, for example from `openssl rand -hex 32`"
            )
        return self

    @model_validator(mode="after")
    def _redaction_sees_whole_texts(self) -> Self:
        if self.redaction_rules is not None and self.synchronous_journal:
            raise ValueError("REDACTION_RULES: with SYNCHRONOUS_JOURNAL texts are kept in pieces that no rule can see")
        return self

    @field_validator("groq_base_url")
    @classmethod
    def _groq_root(cls, value: str) -> str:
        """The SDK appends `/openai/v1` itself; people write it all the same."""
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/").removesuffix("/openai/v1").rstrip("/")

    @field_validator("openai_base_url")
    @classmethod
    def _openai_root(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must be a URL such as http://127.0.0.1:11434/v1")
        return value.rstrip("/")

    @field_validator("mcp_server_url")
    @classmethod
    def _mcp_path(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://127.0.0.1:8001/mcp")
        return urlunsplit(parts._replace(path="/mcp")) if parts.path in ("", "/") else value

    @field_validator("database_url")
    @classmethod
    def _asyncpg_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, separator, rest = value.partition("://")
        if not separator or scheme.split("+")[0] not in ("postgres", "postgresql"):
            raise ValueError("must be a PostgreSQL URL such as postgresql://user:password@host:5432/database")
        return f"postgresql+asyncpg://{rest}"

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return value.upper()

    @property
    def provider(self) -> Literal["groq", "openai"] | None:
        """Whose models answer; None: nobody gave a key, so the simulated Groq serves."""
        if self.groq_api_key is not None:
            return "groq"
        return "openai" if self.openai_api_key is not None else None

    @property
    def default_model(self) -> str:
        return self.openai_default_model if self.provider == "openai" else self.groq_default_model

    @property
    def public_url(self) -> str:
        """Where people's browsers find the gateway, without a slash at the end."""
        return self.gateway_public_url.rstrip("/") if self.gateway_public_url is not None else self.local_url

    @property
    def local_host(self) -> str:
        """The host at which this machine reaches the gateway."""
        return "127.0.0.1" if self.gateway_host in ("0.0.0.0", "::") else self.gateway_host  # noqa: S104

    @property
    def local_url(self) -> str:
        """Where this machine finds the gateway."""
        host = f"[{self.local_host}]" if ":" in self.local_host else self.local_host
        return f"{'https' if self.gateway_tls_cert_file else 'http'}://{host}:{self.gateway_port}"

    @property
    def postgres_url(self) -> str | None:
        """Where Postgres is, for SQLAlchemy with asyncpg; None: nobody said, so the embedded one serves."""
        if self.database_url is not None:
            return self.database_url
        if self.postgres_host is None:
            return None
        password = f":{quote(self.postgres_password.get_secret_value(), safe='')}" if self.postgres_password else ""
        return (
            f"postgresql+asyncpg://{quote(self.postgres_user, safe='')}{password}"
            f"@{self.postgres_host}:{self.postgres_port}/{quote(self.postgres_db, safe='')}"
        )

    @property
    def json_logs(self) -> bool:
        """JSON unless LOG_JSON says otherwise or a person is watching."""
        return not sys.stderr.isatty() if self.log_json is None else self.log_json

    @property
    def effective_log_level(self) -> str:
        return "DEBUG" if self.debug else self.log_level


def load(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`; `overrides` win.

    Raises:
        ConfigError: a value is broken. The message names each variable and what is wrong with it.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(problem) for problem in error.errors())) from None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_placeholder(secret: str) -> bool:
    return _PLACEHOLDER.fullmatch(secret.strip()) is not None


def _line(problem: Any) -> str:
    said = problem["msg"].removeprefix("Value error, ")
    return f"{str(problem['loc'][0]).upper()}: {said}" if problem["loc"] else said
