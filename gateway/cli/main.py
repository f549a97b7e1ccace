"""`agent-gateway`: every way to start the gateway, and to talk to it."""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
import typer

from gateway.config import ConfigError, Settings, load
from gateway.domain.messages import Budget, KeyLimits

if TYPE_CHECKING:
    from gateway.store.api_keys import KeyStore

T = TypeVar("T")
_OPTIONS = {"scopes": "scope", "models": "model", "servers": "server", "tools": "tool"}

app = typer.Typer(
    name="agent-gateway", help="An agent gateway that speaks MCP.", no_args_is_help=True, add_completion=False
)
db = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(db, name="db")
keys = typer.Typer(help="Keys for the API.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@app.command()
def up() -> None:
    """Run everything on this machine: Postgres, the simulated Groq (without a key), the tool server, the gateway."""
    from gateway.server import supervisor

    with clear_errors():
        settings = load()
        if settings.postgres_url is not None:
            _check_database(settings.postgres_url, settings.database_wait_seconds)
        code = supervisor.run(settings)
    raise typer.Exit(code)


@app.command()
def serve(
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="How many processes share the port. Default: GATEWAY_WORKERS, 1.")
    ] = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="The socket of one worker of several.")] = None,
) -> None:
    """Run the gateway alone, everything from the environment."""
    code = 0
    with clear_errors(to_parent=fd is not None):
        settings = load()
        number = workers or settings.gateway_workers
        if fd is None and number > 1:
            from gateway.server import supervisor

            code = supervisor.run_workers(settings, number)
        else:
            from gateway.server import process

            with asyncio.Runner(loop_factory=process.loop_factory()) as runner:
                runner.run(_serve(settings, fd))
    raise typer.Exit(code)


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="What to ask. Without it: a conversation.")] = None,
    url: Annotated[str | None, typer.Option(help="The gateway's address.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to ask.")] = None,
) -> None:
    """Talk to a running gateway in the chat."""
    from gateway.cli import chat as chat_client
    from gateway.server import tls

    with clear_errors():
        settings = load()
        trusted = None if url else tls.client_context(settings)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    raise typer.Exit(chat_client.run(prompt, url or settings.local_url, api_key=key, model=model, trusted=trusted))


@db.command()
def upgrade() -> None:
    """Bring the schema of both packages up to date."""
    from gateway.store import database, migrations

    with clear_errors():
        settings = load()
        with _postgres(settings) as url:
            asyncio.run(database.wait_until_ready(url, settings.database_wait_seconds))
            migrations.upgrade(url)
    print("The database is up to date.")


@keys.command()
def create(
    owner: Annotated[str, typer.Option(help="Whose key: all that is made with it is theirs.")],
    role: Annotated[Literal["admin", "user", "viewer"], typer.Option(help="What it may do.")] = "user",
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_days: Annotated[float | None, typer.Option(help="How long it is good for; else for ever.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="An area that it opens; may be repeated. Else all.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Models that it may ask, as globs. Else all.")] = None,
    server: Annotated[list[str] | None, typer.Option(help="MCP servers that it may reach. Else all.")] = None,
    tool: Annotated[list[str] | None, typer.Option(help="Tools that it may use. Else all.")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests that it may make in a window.")] = None,
    window_seconds: Annotated[int, typer.Option(help="How long that window is.")] = 60,
    streams: Annotated[int | None, typer.Option(help="Turns and streams that it may have open at once.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Its own budget, beside its owner's.")] = None,
    tokens_per_month: Annotated[int | None, typer.Option()] = None,
    usd_per_day: Annotated[float | None, typer.Option()] = None,
    usd_per_month: Annotated[float | None, typer.Option()] = None,
) -> None:
    """Make a key, and print it: this once. The first one switches authentication on."""
    from gateway.store.api_keys import NewKey

    budget = Budget(tokens_per_day, tokens_per_month, usd_per_day, usd_per_month)
    limits = KeyLimits(requests, window_seconds, streams)
    with clear_errors():
        expires_at = _in_days(expires_days)
        _check_key(
            owner=owner, name=name, role=role, scopes=scope, models=model, servers=server, tools=tool,
            budget=msgspec.to_builtins(budget), limits=msgspec.to_builtins(limits), expires_at=expires_at,
        )  # fmt: skip
    new = NewKey(
        owner, name, role, _tuple(scope), _tuple(model), _tuple(server), _tuple(tool),
        budget=None if budget == Budget() else budget,
        limits=None if requests is None and streams is None else limits,
        expires_at=expires_at,
    )  # fmt: skip
    row, secret = _with_keys(lambda store: store.create(new, by="cli"))
    print(f"{secret}\n\nA key of {row.owner} ({row.role}). It is shown this once: only its hash is kept.")


@keys.command("list")
def list_keys(owner: Annotated[str | None, typer.Option(help="Theirs alone.")] = None) -> None:
    """Show the keys: how each begins, whose it is, and how it stands."""
    rows = _with_keys(lambda store: store.all(owner))
    now = datetime.now(UTC)
    for row in rows:
        over = row.expires_at is not None and row.expires_at <= now
        state = "revoked" if row.revoked_at else "expired" if over else "good"
        used = f"{row.last_used_at:%Y-%m-%d %H:%M}" if row.last_used_at else "never used"
        print(f"{row.prefix}  {row.role:6}  {state:7}  {used:16}  {row.owner}  {row.name}")


@keys.command()
def revoke(prefix: Annotated[str, typer.Argument(help="How the key begins, as `list` shows it.")]) -> None:
    """Let a key open nothing any more."""

    async def revoking(store: "KeyStore") -> None:
        await store.revoke(await store.by_prefix(prefix), by="cli")

    _with_keys(revoking)
    print(f"{prefix} is revoked.")


def _check_key(**given: Any) -> None:
    """Raises:
    ConfigError: the HTTP API would not take such a key. A line for each option.
    """
    from pydantic import ValidationError

    from gateway.wire.api_keys import NewKeyBody

    try:
        NewKeyBody.model_validate(given)
    except ValidationError as error:
        lines = [_option_line(*problem["loc"], said=problem["msg"]) for problem in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _option_line(first: int | str, *inner: int | str, said: str) -> str:
    """What is wrong with an option: `--tool: …` of ("tools", 0), `--streams: …` of ("limits", "streams")."""
    name = str(inner[0] if first in ("budget", "limits") else first)
    return f"--{_OPTIONS.get(name, name).replace('_', '-')}: {said}"


def _in_days(days: float | None) -> datetime | None:
    """Raises:
    ConfigError: that is not in the future, or not a moment at all.
    """
    if days is None:
        return None
    now = datetime.now(UTC)
    try:
        moment = now + timedelta(days=days)
    except (OverflowError, ValueError):
        moment = now
    if moment <= now:
        raise ConfigError("--expires-days: must be a number of days after now, before the year 10000")
    return moment


def _tuple(given: list[str] | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(given)


def _with_keys(work: "Callable[[KeyStore], Awaitable[T]]") -> T:
    """Something done with the keys of the configured database."""
    from gateway.domain.errors import GatewayError
    from gateway.store import database
    from gateway.store.api_keys import KeyStore

    async def working(settings: Settings, url: str) -> T:
        await _prepare_schema(settings, url)
        opened = database.Database(url, pool_size=1)
        try:
            return await work(KeyStore(opened))
        except GatewayError as error:
            raise ConfigError(error.message) from None
        finally:
            await opened.close()

    with clear_errors():
        settings = load()
        with _postgres(settings) as url:
            return asyncio.run(working(settings, url))


@contextmanager
def clear_errors(*, to_parent: bool = False) -> Generator[None]:
    """What the person at the terminal can mend is a line or two, not a traceback. A worker's parent prints it once."""
    from gateway_runtime.embedded_postgres import EmbeddedError

    try:
        yield
    except (ConfigError, EmbeddedError) as error:
        if to_parent:
            from gateway.server import process

            process.tell_parent(str(error).encode())
        else:
            print(error, file=sys.stderr)
        raise typer.Exit(2) from None


async def _serve(settings: Settings, fd: int | None) -> None:
    """`fd`: a socket that a parent has bound, for one worker of several."""
    from gateway.common import logging
    from gateway.mcp_client.server_config import load_servers
    from gateway.server import process, tls

    logging.configure(json=settings.json_logs, level=settings.effective_log_level)
    encrypted = tls.server_options(settings)
    load_servers(settings)
    process.allow_many_files()
    if fd is None:
        listener = process.bind(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    else:
        listener = process.inherited(fd)
    # Here, as they take more than a second to import: what is wrong with the above is told at once.
    gc.disable()  # nothing of what is imported is garbage, and to look for some takes a fifth as long again
    import uvicorn

    from gateway.api.http.protocol import HttpProtocol
    from gateway.api.security.authentication import refuse_open_gateway
    from gateway.app import create_app

    gc.freeze()
    gc.enable()
    lifeline = process.Lifeline() if settings.gateway_lifeline == "stdin" else None
    with _postgres(settings) as url:
        await _prepare_schema(settings, url)
        refuse_open_gateway(settings, stored_keys=await _stored_keys(url))
        async with _groq(settings, url) as complete:
            api = create_app(complete, until_served=lifeline.until_all_ready if lifeline and fd is not None else None)
            loop = asyncio.get_running_loop()

            def stop_turns() -> None:
                if lifeline is not None:
                    loop.call_soon_threadsafe(lifeline.stop_waiting)
                if (state := getattr(api.state, "gateway", None)) is not None:
                    asyncio.run_coroutine_threadsafe(state.stop(settings.shutdown_grace_seconds), loop)

            def read_servers_again() -> None:
                if (state := getattr(api.state, "gateway", None)) is not None:
                    state.registry.reload()

            loop.add_signal_handler(signal.SIGHUP, read_servers_again)
            config = uvicorn.Config(
                api,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=int(settings.shutdown_grace_seconds) + 2,
                server_header=False,
                http=HttpProtocol,
                ws="none",
                **encrypted,
            )
            await process.Server(config, stop_turns).serve(sockets=[listener])


def _check_database(url: str, seconds: float) -> None:
    from gateway.store import database

    asyncio.run(database.wait_until_ready(url, seconds))


async def _prepare_schema(settings: Settings, url: str) -> None:
    from gateway.store import database, migrations

    await database.wait_until_ready(url, settings.database_wait_seconds)
    if not await migrations.missing_migrations(url):
        return
    if not settings.migrate_on_start and settings.postgres_url is not None:
        raise database.DatabaseError("DATABASE_URL: the schema is not up to date: run `agent-gateway db upgrade`")
    await asyncio.to_thread(migrations.upgrade, url)


async def _stored_keys(url: str) -> bool:
    from gateway.store.api_keys import KeyStore
    from gateway.store.database import Database

    database = Database(url, pool_size=1)
    try:
        return await KeyStore(database).any()
    finally:
        await database.close()


@contextmanager
def _postgres(settings: Settings) -> Generator[str]:
    """The address of the configured Postgres; without one, of the embedded, which runs as long as the block."""
    if settings.postgres_url is not None:
        yield settings.postgres_url
        return
    from gateway_runtime import embedded_postgres

    server = embedded_postgres.acquire(settings.gateway_data_dir)
    try:
        yield server.url()
    finally:
        server.release()


@asynccontextmanager
async def _groq(settings: Settings, url: str) -> AsyncGenerator[Settings]:
    """The settings with a database and a model's server: without a key, the simulated one, in this process."""
    if settings.provider is not None:
        yield settings.model_copy(update={"database_url": url})
        return
    from pydantic import SecretStr

    from gateway.simulator import SimulatorSettings, serve_simulator

    async with serve_simulator(SimulatorSettings()) as simulator:
        yield settings.model_copy(
            update={
                "database_url": url,
                "groq_api_key": SecretStr("simulated"),
                "groq_base_url": simulator.base_url,
                "groq_simulated": True,
            }
        )


def main() -> None:
    app()


if __name__ == "__main__":
    main()
