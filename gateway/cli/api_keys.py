"""`agent-gateway keys`: create, list, rotate and revoke API keys."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar, get_args

import msgspec
import typer

from gateway.cli.database import run_with_database
from gateway.cli.errors import report_config_errors
from gateway.common.sanitize import escape_for_terminal
from gateway.config import ConfigError, Settings
from gateway.domain.messages import Area, Budget, CodeMode, GatewayTools, KeyLimits

if TYPE_CHECKING:
    from gateway.store.api_keys import KeyStore, NewKey
    from gateway.store.database import Database
    from gateway.store.models import ApiKey

T = TypeVar("T")
_GatewayToolsOption = Annotated[
    GatewayTools | None,
    typer.Option(help="Gateway tools of requests that say nothing. Default: the setting GATEWAY_TOOLS."),
]
_CodeOption = Annotated[
    CodeMode | None,
    typer.Option(help="Programs of requests that say nothing. Default: the setting CODE_MODE in native requests."),
]
_RoleOption = Annotated[
    Literal["admin", "user", "viewer"] | None,
    typer.Option(help="Role of the key. Default: admin for the first stored key where none is configured, else user."),
]
_OPTION_NAMES = {"scopes": "scope", "models": "model", "servers": "server", "tools": "tool"}

app = typer.Typer(help="Create, list, rotate and revoke API keys.", no_args_is_help=True)


@app.command("create")
def create_key(
    owner: Annotated[str, typer.Option(help="Owner of the key and of everything created with it.")],
    role: _RoleOption = None,
    name: Annotated[str, typer.Option(help="Purpose of the key.")] = "",
    expires_days: Annotated[float | None, typer.Option(help="Days until the key expires. Default: never.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"Allowed API area, one of {', '.join(get_args(Area))}; repeatable. Default: all."),
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Allowed models, as globs; repeatable. Default: all.")] = None,
    server: Annotated[list[str] | None, typer.Option(help="Allowed MCP servers; repeatable. Default: all.")] = None,
    tool: Annotated[list[str] | None, typer.Option(help="Allowed tools; repeatable. Default: all.")] = None,
    requests: Annotated[int | None, typer.Option(help="Maximum requests in a window.")] = None,
    window_seconds: Annotated[int, typer.Option(help="Length of the window, in seconds.")] = 60,
    streams: Annotated[int | None, typer.Option(help="Maximum turns and streams open at once.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Token budget per day, beside the owner's.")] = None,
    tokens_per_month: Annotated[int | None, typer.Option(help="Token budget per month, beside the owner's.")] = None,
    usd_per_day: Annotated[float | None, typer.Option(help="Cost budget per day, in US dollars.")] = None,
    usd_per_month: Annotated[float | None, typer.Option(help="Cost budget per month, in US dollars.")] = None,
    gateway_tools: _GatewayToolsOption = None,
    code: _CodeOption = None,
    toolset: Annotated[str | None, typer.Option(help="Toolset that the key is bound to. Default: all tools.")] = None,
) -> None:
    """Create a key and print it once.

    The first key turns authentication on. Where all keys are lost, use `recover`.
    """
    from gateway.store.api_keys import NewKey

    budget = Budget(tokens_per_day, tokens_per_month, usd_per_day, usd_per_month)
    limits = KeyLimits(requests, window_seconds, streams)
    with report_config_errors():
        expires_at = _compute_expiry(expires_days)
        _validate_key(
            owner=owner,
            name=name,
            role=role,
            scopes=scope,
            models=model,
            servers=server,
            tools=tool,
            **msgspec.to_builtins({"budget": budget, "limits": limits}),
            toolset=toolset,
            expires_at=expires_at,
        )
    key = NewKey(
        owner,
        name,
        role,
        *map(_to_optional_tuple, (scope, model, server, tool)),
        budget=None if budget == Budget() else budget,
        limits=None if requests is None and streams is None else limits,
        gateway_tools=gateway_tools,
        code=code,
        toolset=toolset,
        expires_at=expires_at,
    )
    _print_new_key(*run_with_database(partial(_store_new_key, key)))


def _store_new_key(key: "NewKey", database: "Database", settings: Settings) -> "Awaitable[tuple[ApiKey, str]]":
    """Store a key.

    Where it has no role and keys are configured otherwise, it is a user's.
    """
    from gateway.api.security.authentication import accepts_jwt
    from gateway.store.api_keys import KeyStore

    is_configured = settings.api_key is not None or accepts_jwt(settings)
    key = msgspec.structs.replace(key, role=key.role or ("user" if is_configured else None))
    return KeyStore(database).create_key(key, by="cli")


@app.command("recover")
def recover_access(
    owner: Annotated[
        str, typer.Option(help="Owner of the key. `local` owns what was created before the first key.")
    ] = "local",
) -> None:
    """Create an admin key at this machine, and print it once.

    It gives access back where every key is lost. The audit log records it.
    """
    from gateway.store.api_keys import NewKey

    with report_config_errors():
        _validate_key(owner=owner)
    new_key = NewKey(owner, "recovered at the machine", "admin")
    _print_new_key(*_run_with_key_store(lambda store: store.create_key(new_key, by="cli", action="key.recover")))


@app.command("list")
def list_keys(owner: Annotated[str | None, typer.Option(help="Show this owner's keys alone.")] = None) -> None:
    """List the keys: prefix, role, state, last use, owner and name."""

    async def read_keys(store: "KeyStore") -> "list[ApiKey]":
        return [key async for key in store.iterate_keys(owner)]

    now = datetime.now(UTC)
    for row in _run_with_key_store(read_keys):
        is_expired = row.expires_at is not None and row.expires_at <= now
        state = "revoked" if row.revoked_at else "expired" if is_expired else "active"
        last_used = f"{row.last_used_at:%Y-%m-%d %H:%M}" if row.last_used_at else "never used"
        line = f"{row.prefix}  {row.role:6}  {state:7}  {last_used:16}  {row.owner}  {row.name}"
        print(escape_for_terminal(line.replace("\n", "\\n")))


@app.command("revoke")
def revoke_key(prefix: Annotated[str, typer.Argument(help="Prefix of the key, as `list` shows it.")]) -> None:
    """Revoke a key, and all keys made with it."""

    async def revoke_by_prefix(store: "KeyStore") -> None:
        await store.revoke_key(await store.get_by_prefix(prefix), by="cli")

    _run_with_key_store(revoke_by_prefix)
    print(f"{prefix} is revoked.")


@app.command("rotate")
def rotate_key(
    prefix: Annotated[str, typer.Argument(help="Prefix of the key, as `list` shows it.")],
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=720, help="Hours for which the old key stays valid.")
    ] = 24.0,
) -> None:
    """Create a successor, and let the old key expire."""

    async def rotate_by_prefix(store: "KeyStore") -> str:
        key = await store.get_by_prefix(prefix)
        return (await store.rotate_key(key, timedelta(hours=overlap_hours), by="cli"))[1]

    secret = _run_with_key_store(rotate_by_prefix)
    print(f"{secret}\n\nThe successor of {prefix}, which expires in {overlap_hours:g} hours. It is shown this once.")


def _print_new_key(row: "ApiKey", secret: str) -> None:
    print(f"{secret}\n\nA key of {row.owner} ({row.role}). It is shown this once: only its hash is stored.")
    print(f"Try: agent-gateway chat --key {secret}")


def _validate_key(**values: object) -> None:
    """Check the values like the HTTP API.

    Raises:
        ConfigError: the HTTP API would reject the key. The message has a line for each option.
    """
    from pydantic import ValidationError

    from gateway.wire.api_keys import NewKeyBody

    try:
        NewKeyBody.model_validate(values)
    except ValidationError as error:
        lines = [_format_option_problem(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _format_option_problem(location: tuple[int | str, ...], message: str) -> str:
    """Name the option of a validation error.

    For example, `--tool: …` for ("tools", 0), `--streams: …` for ("limits", "streams").
    """
    name = str(location[1] if location[0] in ("budget", "limits") else location[0])
    return f"--{_OPTION_NAMES.get(name, name).replace('_', '-')}: {message}"


def _compute_expiry(days: float | None) -> datetime | None:
    """Compute when a key expires; None: never.

    Raises:
        ConfigError: the time is not in the future, or cannot be represented.
    """
    if days is None:
        return None
    now = datetime.now(UTC)
    try:
        expires_at = now + timedelta(days=days)
    except (OverflowError, ValueError):
        expires_at = now
    if expires_at <= now:
        raise ConfigError("--expires-days: must be a number of days after now, before the year 10000")
    return expires_at


def _to_optional_tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def _run_with_key_store(function: "Callable[[KeyStore], Awaitable[T]]") -> T:
    """Run a function with the key store of the configured database."""
    from gateway.store.api_keys import KeyStore

    return run_with_database(lambda database, _settings: function(KeyStore(database)))
