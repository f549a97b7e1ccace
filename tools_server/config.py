"""Settings of the tool server, from the environment and `.env`."""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import NoDecode, SettingsConfigDict

from gateway_runtime.errors import ConfigError
from gateway_runtime.outgoing.private_targets import parse_private_target
from gateway_runtime.postgres.settings import PostgresSettings
from gateway_runtime.renamed_settings import RenamedSetting, find_renamed_settings, read_parent_fd
from gateway_runtime.settings.hosts import normalize_host_pattern, normalize_origin, split_list
from gateway_runtime.tls import TlsFiles

__all__ = ["ConfigError", "Settings", "list_renamed_settings", "load_settings"]

_PLACEHOLDER = re.compile(
    r"<.*>|[.…x*]+|.*change[-_ ]?me.*|(your|my)[-_ ].*|secret|password|example|default", re.IGNORECASE
)
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_DEFAULT_PORTS = {80: "http", 443: "https"}
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]


RENAMED_SETTINGS = {"GATEWAY_LIFELINE": "GATEWAY_PARENT_FD"}
"""Old environment names, and the names that replace them.

Old names are still accepted.
"""


class Settings(PostgresSettings):
    """Settings of the tool server.

    The environment variable of a field's name sets it, or an alias that the field lists.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    tools_server_host: str = "127.0.0.1"
    tools_server_port: int = Field(default=8001, ge=0, le=65535)
    tools_server_secret: SecretStr | None = None
    tools_server_state_key: SecretStr | None = None
    tools_server_audience: str = "tools-server"
    tools_server_gateway_jwks_url: str | None = None
    tools_server_gateway_jwks_file: Path | None = None
    tools_server_oauth_issuer: str | None = None
    tools_server_oauth_jwks_url: str | None = None
    tools_server_public_url: str | None = None
    tools_server_tls_cert_file: Path | None = None
    tools_server_tls_key_file: Path | None = None
    tools_server_tls_key_password: SecretStr | None = None
    tools_server_allowed_hosts: CommaSeparated = ()
    tools_server_allowed_origins: CommaSeparated = ()
    tools_server_keep_alive_seconds: float = Field(default=75.0, gt=0, le=3_600)
    tools_server_session_idle_seconds: float = Field(default=1_800.0, gt=0, le=86_400)
    tools_server_max_sessions: int = Field(default=1_000, ge=1)
    tools_server_max_user_sessions: int = Field(default=100, ge=1)

    tools_encryption_key: SecretStr | None = Field(default=None, min_length=16)
    tools_encryption_old_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split_list)] = ()
    tools_private_targets: CommaSeparated = ()

    gateway_data_dir: Path = Path(".data")
    gateway_parent_fd: Annotated[int | None, BeforeValidator(read_parent_fd)] = Field(
        default=None, ge=0, validation_alias=AliasChoices("GATEWAY_PARENT_FD", "GATEWAY_LIFELINE")
    )

    search_backend: Literal["duckduckgo", "tavily", "brave", "searxng"] = "duckduckgo"
    search_timeout: float = Field(default=10.0, gt=0, le=60)
    tavily_api_key: SecretStr | None = None
    brave_api_key: SecretStr | None = None
    searxng_url: str | None = None

    metrics: bool = False
    metrics_host: str = "127.0.0.1"
    tools_metrics_port: int | None = Field(default=None, ge=1, le=65_535)
    redaction_rules: Path | None = None

    log_json: bool | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    debug: bool = False

    @field_validator("tools_server_allowed_hosts")
    @classmethod
    def _normalize_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normalize_host_pattern(host, keep_port=True) for host in hosts)

    @field_validator("tools_server_allowed_origins")
    @classmethod
    def _normalize_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(normalize_origin(origin, any_port=True) for origin in origins)

    @field_validator("tools_server_secret", "tools_server_state_key", "tools_encryption_key")
    @classmethod
    def _reject_placeholder_secret(cls, value: SecretStr | None) -> SecretStr | None:
        """Refuse secrets from examples.

        With the secret, a caller can claim to be any user.
        """
        if value is not None and _PLACEHOLDER.fullmatch(value.get_secret_value().strip()):
            raise ValueError("is a placeholder: set a secret of your own, for example from `openssl rand -hex 32`")
        return value

    @field_validator("tools_private_targets")
    @classmethod
    def _validate_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            parse_private_target(target)
        return targets

    @field_validator("log_level", mode="before")
    @classmethod
    def _normalize_log_level(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator(
        "searxng_url",
        "tools_server_gateway_jwks_url",
        "tools_server_oauth_issuer",
        "tools_server_oauth_jwks_url",
        "tools_server_public_url",
    )
    @classmethod
    def _validate_web_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value

    @model_validator(mode="after")
    def _validate_certificate_and_key(self) -> Self:
        if (self.tools_server_tls_cert_file is None) != (self.tools_server_tls_key_file is None):
            raise ValueError("TOOLS_SERVER_TLS_CERT_FILE and TOOLS_SERVER_TLS_KEY_FILE: set both of them, or none")
        return self

    @model_validator(mode="after")
    def _validate_search_backend(self) -> Self:
        """Require the key or the address of the chosen search engine."""
        requirements = {
            "tavily": ("TAVILY_API_KEY", self.tavily_api_key),
            "brave": ("BRAVE_API_KEY", self.brave_api_key),
            "searxng": ("SEARXNG_URL", self.searxng_url),
        }
        name, value = requirements.get(self.search_backend, ("", ""))
        if value is None:
            raise ValueError(f"{name}: must be set for SEARCH_BACKEND={self.search_backend}")
        return self

    @property
    def tls_files(self) -> TlsFiles | None:
        """The certificate and key for https; None for plain http."""
        if self.tools_server_tls_cert_file is None or self.tools_server_tls_key_file is None:
            return None
        password = self.tools_server_tls_key_password
        return TlsFiles(
            self.tools_server_tls_cert_file,
            self.tools_server_tls_key_file,
            password.get_secret_value() if password else None,
            "TOOLS_SERVER_TLS",
        )

    @property
    def resource_url(self) -> str:
        """The URL of `/mcp` for clients: the audience of tokens."""
        scheme = "https" if self.tools_server_tls_cert_file else "http"
        local_url = f"{scheme}://{self.tools_server_host}:{self.tools_server_port}"
        return f"{(self.tools_server_public_url or local_url).rstrip('/').removesuffix('/mcp')}/mcp"

    @property
    def public_origin(self) -> str | None:
        """The origin of TOOLS_SERVER_PUBLIC_URL, which is the server's own."""
        if self.tools_server_public_url is None:
            return None
        scheme, separator, rest = self.tools_server_public_url.partition("://")
        return normalize_origin(f"{scheme}{separator}{rest.partition('/')[0]}")

    @property
    def gateway_keys(self) -> str | Path:
        """The URL or file of the gateway's public keys.

        By default, the file that a gateway with the same data directory writes.
        """
        default_file = self.gateway_data_dir / "identity-jwks.json"
        return self.tools_server_gateway_jwks_url or self.tools_server_gateway_jwks_file or default_file

    @property
    def requires_token(self) -> bool:
        """Whether every caller needs a token.

        On loopback, too, where tokens are configured: a proxy, which need not add headers, may connect from there.
        """
        token_settings = (
            self.tools_server_oauth_issuer,
            self.tools_server_oauth_jwks_url,
            self.tools_server_gateway_jwks_url,
            self.tools_server_gateway_jwks_file,
            self.tools_server_secret,
            self.tools_server_public_url,
        )
        return not self.on_loopback or any(value is not None for value in token_settings)

    def list_resource_urls(self, port: int) -> list[str]:
        """List the URLs of `/mcp` under every name of this server.

        The server listens on `port`.
        """
        hosts = self.tools_server_allowed_hosts
        names = [name for host in hosts for name in (host, f"{host}:{port}")]
        if self.on_loopback or not hosts:
            names += [f"{host}:{port}" for host in LOOPBACK_HOSTS]
        urls = [f"{scheme}://{name}/mcp" for scheme in ("http", "https") for name in names]
        if port in _DEFAULT_PORTS:  # any other server of this machine has a URL without a port, too
            urls += [f"{_DEFAULT_PORTS[port]}://{host}/mcp" for host in LOOPBACK_HOSTS]
        return [self.resource_url, *urls]

    @property
    def jwks_url(self) -> str:
        """The URL of the authorization server's keys."""
        return (
            self.tools_server_oauth_jwks_url
            or f"{(self.tools_server_oauth_issuer or '').rstrip('/')}/.well-known/jwks.json"
        )

    @property
    def on_loopback(self) -> bool:
        """Return whether the server listens on a loopback address."""
        return _is_loopback(self.tools_server_host)

    @property
    def metrics_on_loopback(self) -> bool:
        """Return whether metrics are served at a loopback address."""
        return _is_loopback(self.metrics_host)

    @property
    def serves_metrics(self) -> bool:
        """Return whether `/metrics` is served; it has a port of its own."""
        return self.metrics and self.tools_metrics_port is not None

    @property
    def effective_log_level(self) -> str:
        return "DEBUG" if self.debug else self.log_level

    @property
    def json_logs(self) -> bool:
        return not sys.stderr.isatty() if self.log_json is None else self.log_json


def load_settings(**overrides: object) -> Settings:
    """Read the settings from the environment and `.env`; `overrides` win.

    Raises:
        ConfigError: a value is not valid. The message names each variable and its problem.
    """
    try:
        return Settings(**overrides)  # pyright: ignore[reportArgumentType] - pydantic checks the values
    except ValidationError as error:
        raise ConfigError("\n".join(map(_format_problem, error.errors()))) from None


def list_renamed_settings() -> list[RenamedSetting]:
    """List the old names in use, to be logged."""
    return find_renamed_settings(RENAMED_SETTINGS)


def _format_problem(problem: ErrorDetails) -> str:
    name = f"{str(problem['loc'][0]).upper()}: " if problem["loc"] else ""
    return f"{name}{problem['msg'].removeprefix('Value error, ')}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
