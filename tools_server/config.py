"""Settings of the tool server, from the environment and `.env`."""

import ipaddress
import sys
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class ConfigError(Exception):
    """The environment does not make sense. `str()` is for the terminal: a line for each broken value."""


class Settings(BaseSettings):
    """Every field can be set by the environment variable of its name."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    tools_server_host: str = "127.0.0.1"
    tools_server_port: int = Field(default=8001, ge=0, le=65535)
    tools_server_secret: SecretStr | None = None
    tools_server_audience: str = "tools-server"
    tools_server_allowed_hosts: CommaSeparated = ()
    tools_server_allowed_origins: CommaSeparated = ()

    database_url: str | None = None
    postgres_host: str | None = None
    postgres_port: int = 5432
    postgres_user: str = "postgres"
    postgres_password: SecretStr | None = None
    postgres_db: str = "agent_gateway"
    gateway_data_dir: Path = Path(".data")
    gateway_lifeline: str | None = None

    search_backend: Literal["duckduckgo", "tavily", "brave", "searxng"] = "duckduckgo"
    search_timeout: float = Field(default=10.0, gt=0, le=60)
    tavily_api_key: SecretStr | None = None
    brave_api_key: SecretStr | None = None
    searxng_url: str | None = None

    log_json: bool | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    debug: bool = False

    @field_validator("tools_server_allowed_hosts", "tools_server_allowed_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _asyncpg_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        scheme, separator, rest = value.partition("://")
        if not separator or scheme.split("+")[0] not in ("postgres", "postgresql"):
            raise ValueError("must be a PostgreSQL URL such as postgresql://user:password@host:5432/database")
        return f"postgresql+asyncpg://{rest}"

    @cached_property
    def postgres_url(self) -> str | None:
        """Where Postgres is; None: nobody said, so the embedded one serves."""
        if self.database_url is not None or self.postgres_host is None:
            return self.database_url
        password = f":{quote(self.postgres_password.get_secret_value(), safe='')}" if self.postgres_password else ""
        place = f"{self.postgres_host}:{self.postgres_port}/{quote(self.postgres_db, safe='')}"
        return f"postgresql+asyncpg://{quote(self.postgres_user, safe='')}{password}@{place}"

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.tools_server_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.tools_server_host).is_loopback
        except ValueError:
            return False

    @property
    def json_logs(self) -> bool:
        return not sys.stderr.isatty() if self.log_json is None else self.log_json


def load(**overrides: Any) -> Settings:
    """Settings from the environment and `.env`; `overrides` win.

    Raises:
        ConfigError: a value is broken. The message names each variable and what is wrong with it.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = (f"{str(p['loc'][0]).upper()}: {p['msg'].removeprefix('Value error, ')}" for p in error.errors())
        raise ConfigError("\n".join(lines)) from None
