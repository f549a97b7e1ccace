"""`agent-gateway compose-secrets`: what compose.yaml needs before its first start."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.errors import report_config_errors
from gateway.config import ConfigError
from gateway.settings.values import is_loopback
from gateway_runtime.postgres.url import PostgresAddress, build_url, parse_address

_POSTGRES_HOSTS = ("postgres", "db")
"""Names of compose.yaml's own Postgres."""
_SECRET_BYTES = 32
_FILE_MODE = 0o444  # each volume is mounted only where it is needed, for users with different ids


def write_secrets(
    directory: Annotated[Path, typer.Argument(help="The directory of the volumes.")] = Path("/secrets"),
) -> None:
    """Make the secrets that .env does not set, once.

    Passwords of Postgres and Redis, their addresses, and the key of the tool server's questions.
    """
    with report_config_errors():
        try:
            _write_postgres(directory / "postgres", os.environ)
            _write_redis(directory / "redis", os.environ)
            key = os.environ.get("TOOLS_SERVER_STATE_KEY") or os.environ.get("TOOLS_SERVER_SECRET")
            _write(directory / "tools" / "state-key", key or _read_or_make(directory / "tools" / "state-key"))
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from None


def _write_postgres(directory: Path, environment: Mapping[str, str]) -> None:
    """Write the address, and the user, password and database that Postgres creates.

    An address in .env that leads to this machine means compose.yaml's Postgres: in a container there is no other.
    """
    address = _read_address(environment)
    hosts = [host for host, _ in address.hosts] if address else []
    if address is not None and not all(host in _POSTGRES_HOSTS or is_loopback(host) for host in hosts):
        _write(directory / "url", address.to_url())
        address = None
    password = directory / "password"
    user = (address and address.user) or "gateway"
    database = (address and address.database) or (user if address else "agent_gateway")
    secret = (address and address.password) or environment.get("POSTGRES_PASSWORD") or _read_or_make(password)
    _write(password, secret)
    _write(directory / "user", user)
    _write(directory / "database", database)
    if address is not None or not hosts:
        host = next((host for host in hosts if host in _POSTGRES_HOSTS), _POSTGRES_HOSTS[0])
        own = replace(
            address or PostgresAddress(()), hosts=((host, 5432),), user=user, password=secret, database=database
        )
        _write(directory / "url", own.to_url())


def _read_address(environment: Mapping[str, str]) -> PostgresAddress | None:
    """Read DATABASE_URL, or the address of POSTGRES_*.

    None: neither is set.
    """
    setting = "DATABASE_URL" if environment.get("DATABASE_URL") else "POSTGRES_HOST"
    try:
        if setting == "DATABASE_URL":
            return parse_address(environment["DATABASE_URL"])
        names = ("POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_DB")
        if not any(environment.get(name) for name in names):
            return None
        url = build_url(
            environment.get("POSTGRES_HOST") or _POSTGRES_HOSTS[0],
            int(environment.get("POSTGRES_PORT") or 5432),
            user=environment.get("POSTGRES_USER") or "gateway",
            password=environment.get("POSTGRES_PASSWORD") or None,
            database=environment.get("POSTGRES_DB") or "agent_gateway",
        )
        return parse_address(url)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from None


def _write_redis(directory: Path, environment: Mapping[str, str]) -> None:
    password = environment.get("REDIS_PASSWORD") or _read_or_make(directory / "password")
    _write(directory / "password", password)
    own = PostgresAddress((("redis", 6379),), password=password, database="0").to_url().partition("://")[2]
    _write(directory / "url", environment.get("REDIS_URL") or f"redis://{own}")


def _read_or_make(file: Path) -> str:
    return file.read_text() if file.exists() and file.stat().st_size else secrets.token_urlsafe(_SECRET_BYTES)


def _write(file: Path, text: str) -> None:
    """Replace a file as a whole, if its text changes."""
    if file.exists() and file.read_text() == text:
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text)
    draft.chmod(_FILE_MODE)
    draft.replace(file)
