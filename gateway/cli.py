"""`agent-gateway`: every way to start the gateway, and to talk to it."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated

import typer

from gateway.config import ConfigError, Settings, load

app = typer.Typer(
    name="agent-gateway", help="An agent gateway that speaks MCP.", no_args_is_help=True, add_completion=False
)
db = typer.Typer(help="The database's schema.", no_args_is_help=True)
app.add_typer(db, name="db")


@app.command()
def up() -> None:
    """Run everything on this machine: Postgres, the simulated Groq (without a key), the tool server, the gateway."""
    from gateway import supervisor

    with clear_errors():
        settings = load()
        if settings.postgres_url is not None:
            _check_database(settings.postgres_url, settings.database_wait_seconds)
        code = supervisor.run(settings)
    raise typer.Exit(code)


@app.command()
def serve() -> None:
    """Run the gateway alone, everything from the environment."""
    with clear_errors():
        settings = load()
        asyncio.run(_serve(settings))


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="What to ask. Without it: a conversation.")] = None,
    url: Annotated[str | None, typer.Option(help="The gateway's address.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to ask.")] = None,
) -> None:
    """Talk to a running gateway in the terminal."""
    from gateway import terminal

    with clear_errors():
        settings = load()
    key = settings.api_key.get_secret_value() if settings.api_key else None
    url = url or f"http://{settings.gateway_host}:{settings.gateway_port}"
    raise typer.Exit(terminal.run(prompt, url, api_key=key, model=model))


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


@contextmanager
def clear_errors() -> Generator[None]:
    """What the person at the terminal can mend is a line or two, not a traceback."""
    from gateway.store.embedded import EmbeddedError

    try:
        yield
    except (ConfigError, EmbeddedError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


async def _serve(settings: Settings) -> None:
    import uvicorn

    from gateway import log, process
    from gateway.api.auth import refuse_open_gateway
    from gateway.app import create_app

    log.configure(json=settings.json_logs, level=settings.effective_log_level)
    refuse_open_gateway(settings)
    listener = process.bind(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    process.end_with_parent(settings.gateway_lifeline)
    with _postgres(settings) as url:
        await _prepare_schema(settings, url)
        async with _groq(settings, url) as complete:
            api = create_app(complete)
            loop = asyncio.get_running_loop()

            def stop_turns() -> None:
                asyncio.run_coroutine_threadsafe(api.state.gateway.stop(settings.shutdown_grace_seconds), loop)

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


@contextmanager
def _postgres(settings: Settings) -> Generator[str]:
    """The address of the configured Postgres; without one, of the embedded, which runs as long as the block."""
    if settings.postgres_url is not None:
        yield settings.postgres_url
        return
    from gateway.store import embedded

    server = embedded.acquire(settings.gateway_data_dir)
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

    from gateway.llm.simulator import SimulatorSettings, serve_simulator

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
