"""Settings of the console: environment variables, or lines in `.env`."""

from pathlib import Path
from typing import Annotated, cast

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway_runtime.errors import ConfigError
from gateway_runtime.settings.hosts import (
    UNKNOWN_HOST,
    find_bind_host,
    is_host_allowed,
    normalize_host_pattern,
    normalize_origin,
    split_list,
)

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def _normalize_hosts(value: object) -> object:
    parts = split_list(value)
    if not isinstance(parts, tuple):
        return parts
    return tuple(normalize_host_pattern(str(part), keep_port=True) for part in cast(tuple[object, ...], parts))


def _normalize_url(value: object) -> object:
    return normalize_origin(value.strip()) if isinstance(value, str) and value.strip() else None


class ConsoleSettings(BaseSettings):
    """Settings of the console."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True, frozen=True)

    console_host: str = "127.0.0.1"
    console_port: int = Field(default=8002, ge=0, le=65535)
    console_gateway_url: str | None = None
    console_public_url: Annotated[str | None, BeforeValidator(_normalize_url)] = None
    console_allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_normalize_hosts)] = ()
    console_allow_anonymous: bool = False
    console_bind: str | None = None
    console_gateway_cert_file: Path | None = None
    console_session_seconds: float = Field(default=28_800.0, gt=0, le=604_800)
    console_max_sessions: int = Field(default=1_000, ge=1, le=100_000)
    gateway_port: int = Field(default=8000, ge=0, le=65535)
    gateway_parent_fd: int | None = None

    @property
    def gateway_url(self) -> str:
        """The URL at which this process reaches the gateway."""
        return (self.console_gateway_url or f"http://127.0.0.1:{self.gateway_port}").rstrip("/")

    @property
    def hosts(self) -> tuple[str, ...]:
        """The Host headers that the console answers."""
        public = (self.console_public_url.partition("://")[2],) if self.console_public_url else ()
        return (*_LOOPBACK, *public, *self.console_allowed_hosts)

    @property
    def allows_anonymous(self) -> bool:
        """Return whether people need no credential where the gateway asks for none."""
        public_host = (self.console_public_url or "http://127.0.0.1").partition("://")[2]
        is_local = self.console_host in _LOOPBACK and is_host_allowed(public_host, _LOOPBACK)
        return self.console_allow_anonymous or (is_local and not self.console_allowed_hosts)

    @property
    def has_secure_cookies(self) -> bool:
        return (self.console_public_url or "").startswith("https://")


def load_console_settings() -> ConsoleSettings:
    """Load the settings from the environment and `.env`.

    Raises:
        ConfigError: a setting is invalid.
    """
    try:
        settings = ConsoleSettings()
    except ValidationError as error:
        problems = [f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
        raise ConfigError("\n".join(problems)) from None
    bind = settings.console_bind
    if settings.console_allow_anonymous and bind is not None and find_bind_host(bind) not in _LOOPBACK:
        raise ConfigError(
            f"CONSOLE_BIND: {bind} can be reached from other machines: CONSOLE_ALLOW_ANONYMOUS does not apply there"
        )
    if settings.console_allow_anonymous and is_host_allowed(UNKNOWN_HOST, settings.hosts):
        raise ConfigError("CONSOLE_ALLOWED_HOSTS: list the names: CONSOLE_ALLOW_ANONYMOUS does not apply to any name")
    return settings
