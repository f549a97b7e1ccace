"""`agent-gateway mcp`: add, list, test and remove MCP servers."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from gateway.cli.database import run_with_database
from gateway.cli.mcp_file import find_server_file, write_entry
from gateway.common.sanitize import escape_for_terminal
from gateway.config import ConfigError, Settings
from gateway.domain.messages import JsonObject
from gateway.mcp_client.server_config import load_servers
from gateway.ports.servers import ServerConfig

if TYPE_CHECKING:
    from gateway.ports.tools import ServerStatus
    from gateway.store.database import Database
    from gateway.store.mcp_servers import ServerStore

T = TypeVar("T")
_TEST_SECONDS = 30.0
_LIVE_SECONDS = 3.0
_MAX_DESCRIPTION_LENGTH = 80

app = typer.Typer(help="Add, list, test and remove MCP servers.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="Name of the server.")]


@app.command("add")
def add_server(
    name: NameArgument,
    target: Annotated[
        list[str], typer.Argument(help="URL of the server, or after `--` a command that the gateway starts.")
    ],
    header: Annotated[list[str] | None, typer.Option(help="HTTP header, as 'Name: value'; repeatable.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="Variable of the command, as NAME=value; repeatable.")] = None,
    transport: Annotated[Literal["http", "sse"], typer.Option(help="Transport of a URL.")] = "http",
    prefix: Annotated[str | None, typer.Option(help="Prefix of its tools' names. Default: the name.")] = None,
) -> None:
    """Add an MCP server.

    A URL is stored in the database, for all workers. A command is written to the file of MCP servers, because it runs
    on this machine. A running gateway connects at once.
    """
    is_url = len(target) == 1 and target[0].startswith(("http://", "https://"))
    if is_url and env:
        raise typer.BadParameter("only a command has variables", param_hint="--env")
    if not is_url and header:
        raise typer.BadParameter("only a URL has headers", param_hint="--header")
    options = {} if prefix is None else {"prefix": prefix}
    if is_url:
        headers = dict(_split_option(text, ":", "--header") for text in header or ())
        place = _add_url(name, {"url": target[0], "type": transport, "headers": headers, **options})
    else:
        variables = dict(_split_option(text, "=", "--env") for text in env or ())
        entry = {"command": target[0], "args": target[1:], **({"env": variables} if variables else {}), **options}
        place = _add_command(name, entry)
    print(escape_for_terminal(f"{name} is added to {place}. `agent-gateway mcp test {name}` tries it."))


@app.command("list")
def list_servers() -> None:
    """List the MCP servers: name, state, source, and address or command.

    The states are those of the running gateway.
    """

    async def read(store: "ServerStore", settings: Settings) -> tuple[list[ServerConfig], set[str], JsonObject | None]:
        stored = {record.name for record in await store.list_servers() if record.config is not None}
        return await _read_servers(store, settings), stored, await _fetch_states(settings)

    servers, stored, states = _run_with_server_store(read)
    for server in servers:
        state, reason = (states or {}).get(server.name, ("-", None))
        if server.fault is not None or server.disabled:
            state, reason = "disabled", server.fault
        source = "database" if server.name in stored else "file"
        line = f"{server.name:20}  {state:10}  {source:8}  {_describe_target(server)}"
        print(escape_for_terminal(f"{line}  ({reason})" if reason else line))
    if not servers:
        print("There are no MCP servers.")
    elif states is None:
        typer.echo("No gateway answered, or it needs another key than API_KEY: the states are unknown.", err=True)


@app.command("test")
def check_server(name: NameArgument) -> None:
    """Connect to an MCP server from here, and list its tools."""

    async def connect(database: "Database", settings: Settings) -> tuple["ServerStatus", list[tuple[str, str]]]:
        from gateway.mcp_client.identity_keys import IdentityKeys
        from gateway.mcp_client.toolbox import McpToolbox
        from gateway.store.encryption import Cipher, load_encryption_secrets
        from gateway.store.oauth_grants import PostgresGrantStore

        config = _find_server(name, await _read_servers(_open_store(database, settings), settings))
        secrets = load_encryption_secrets(settings)
        grants = PostgresGrantStore(database, Cipher(*secrets))
        toolbox = McpToolbox([config], settings, None, grants, identity_keys=IdentityKeys(secrets))
        await toolbox.connect_servers()
        try:
            await toolbox.wait_until_connected(_TEST_SECONDS)
            specs = [(spec.name, spec.description) for spec in toolbox.list_specs() if spec.server == name]
            return toolbox.list_server_statuses()[0], specs
        finally:
            await toolbox.disconnect_servers()

    started_at = time.monotonic()
    status, tools = run_with_database(connect)
    seconds = time.monotonic() - started_at
    if status.state not in ("up", "degraded"):
        reason = status.reason or f"it did not answer within {_TEST_SECONDS:g} seconds"
        typer.echo(escape_for_terminal(f"{name} is {status.state}: {reason}"), err=True)
        raise typer.Exit(1)
    print(f"{name} is {status.state}: protocol {status.protocol_version}, {status.tools} tools, after {seconds:.1f} s")
    for tool, description in sorted(tools):
        first_line = description.strip().partition("\n")[0][:_MAX_DESCRIPTION_LENGTH]
        print(escape_for_terminal(f"  {tool}  {first_line}"))


@app.command("remove")
def remove_server(name: NameArgument) -> None:
    """Remove an MCP server from the database or the file."""

    async def remove(store: "ServerStore", settings: Settings) -> str:
        if any(record.name == name and record.config is not None for record in await store.list_servers()):
            await store.delete_server(name, by="cli")
            return "the database"
        _find_server(name, load_servers(settings))
        file = find_server_file(settings)
        write_entry(file, name, None)
        return str(file)

    place = _run_with_server_store(remove)
    print(escape_for_terminal(f"{name} is removed from {place}."))


def _add_url(name: str, fields: JsonObject) -> str:
    from pydantic import ValidationError

    from gateway.api.routes.mcp.server_bodies import ServerCreate
    from gateway.common.validation_errors import describe_problem

    async def add(store: "ServerStore", settings: Settings) -> str:
        try:
            config = ServerCreate.model_validate({"name": name, **fields}).to_config()
            ServerConfig.model_validate({**config, "name": name})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(": ".join(describe_problem(first, first["loc"]))) from None
        _require_new(name, await _read_servers(store, settings))
        await store.save_server(name, config, disabled=False, by="cli")
        return "the database"

    return _run_with_server_store(add)


def _add_command(name: str, entry: JsonObject) -> str:
    async def add(store: "ServerStore", settings: Settings) -> str:
        file = find_server_file(settings)
        _require_new(name, await _read_servers(store, settings))
        write_entry(file, name, entry)
        return str(file)

    return _run_with_server_store(add)


def _run_with_server_store(function: Callable[["ServerStore", Settings], Awaitable[T]]) -> T:
    """Run a function with the servers of the configured database."""
    return run_with_database(lambda database, settings: function(_open_store(database, settings), settings))


def _open_store(database: "Database", settings: Settings) -> "ServerStore":
    from gateway.store.encryption import Cipher, load_encryption_secrets
    from gateway.store.mcp_servers import ServerStore

    return ServerStore(database, Cipher(*load_encryption_secrets(settings)))


async def _read_servers(store: "ServerStore", settings: Settings) -> list[ServerConfig]:
    """Merge the servers of the file and the database, like the gateway."""
    servers = {server.name: server for server in load_servers(settings)}
    for record in await store.list_servers():
        if record.config is not None and record.name not in servers:
            servers[record.name] = record.to_config()
        if record.disabled and record.name in servers:
            servers[record.name] = servers[record.name].model_copy(update={"disabled": True})
    return list(servers.values())


def _find_server(name: str, servers: list[ServerConfig]) -> ServerConfig:
    for server in servers:
        if server.name == name:
            return server
    names = ", ".join(sorted(server.name for server in servers)) or "none"
    raise ConfigError(f"There is no MCP server {name!r}. There are: {names}")


def _require_new(name: str, servers: list[ServerConfig]) -> None:
    if any(server.name == name for server in servers):
        raise ConfigError(f"There is an MCP server {name!r} already: remove it first")


def _split_option(text: str, separator: str, option: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not found or not name.strip():
        raise typer.BadParameter(f"must have the form NAME{separator}value", param_hint=option)
    return name.strip(), value.strip()


def _describe_target(server: ServerConfig) -> str:
    """Return the address, or the command.

    Arguments of the command may be secrets.
    """
    from gateway.common.urls import strip_url_secrets

    return strip_url_secrets(server.url) if server.url else server.command


async def _fetch_states(settings: Settings) -> JsonObject | None:
    """Return state and reason of each server by the running gateway.

    None: no gateway answers, or the key is not sufficient.
    """
    import aiohttp

    from gateway_runtime import tls

    key = settings.api_key.get_secret_value() if settings.api_key else None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{settings.local_url}/api/v1/mcp/servers"
    connector = aiohttp.TCPConnector(ssl=tls.build_client_context(settings.tls_files) or True)
    try:
        async with (
            asyncio.timeout(_LIVE_SECONDS),
            aiohttp.ClientSession(connector=connector) as session,
            session.get(url, headers=headers) as response,
        ):
            servers = json.loads(await response.read())["servers"] if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
        return None
    return None if servers is None else {server["name"]: (server["state"], server["reason"]) for server in servers}
