"""`tools-server`: the MCP server over streamable HTTP, or over stdio for a host that starts it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Annotated, Any

import structlog
import typer
import uvicorn

from gateway.store import embedded
from tools_server.config import ConfigError, Settings, load
from tools_server.migrate import upgrade_when_there
from tools_server.server import create_app, create_server
from tools_server.tasks import TaskStore

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    stdio: Annotated[bool, typer.Option("--stdio", help="Speak MCP over standard input and output.")] = False,
) -> None:
    """Run the tool server: over HTTP at /mcp, or over stdio."""
    try:
        settings = load()
        configure_logs(settings)
        listener = None if stdio else bind(settings)
        with postgres(settings) as url:
            asyncio.run(run(settings, url, listener))
    except (ConfigError, embedded.EmbeddedError) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from None


async def run(settings: Settings, url: str, listener: socket.socket | None) -> None:
    """Serve until told to stop; over stdio where there is no listener."""
    store = TaskStore(url)
    mcp = create_server(settings, store)
    migrating = asyncio.create_task(upgrade_when_there(url), name="migrations")
    try:
        if listener is None:
            await mcp.run_stdio_async()
        else:
            end_with_parent(settings.gateway_lifeline)
            # A second is enough for calls: what still runs then is cancelled, as are listening streams.
            config = uvicorn.Config(
                create_app(mcp, settings), log_config=None, access_log=False, timeout_graceful_shutdown=1
            )
            await Server(config).serve(sockets=[listener])
    finally:
        migrating.cancel()
        await asyncio.gather(migrating, return_exceptions=True)
        await store.close()


class Server(uvicorn.Server):
    """uvicorn; being told to stop is no failure: it does not raise the signal again, and the process exits with 0."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


@contextlib.contextmanager
def postgres(settings: Settings) -> Generator[str]:
    """The configured database; without one the embedded, shared with a gateway on the same data directory."""
    if settings.postgres_url is not None:
        yield settings.postgres_url
        return
    server = embedded.acquire(settings.gateway_data_dir)
    for note in server.notes:
        structlog.stdlib.get_logger(__name__).info("embedded_postgres", note=note)
    try:
        yield server.url()
    finally:
        server.release()


def bind(settings: Settings) -> socket.socket:
    host, port = settings.tools_server_host, settings.tools_server_port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"TOOLS_SERVER_PORT: cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def end_with_parent(lifeline: str | None) -> None:
    """With GATEWAY_LIFELINE=stdin, stop as by SIGTERM when standard input ends: the parent that held it is gone."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if lifeline == "stdin":
        threading.Thread(target=wait, daemon=True, name="lifeline").start()


def configure_logs(settings: Settings) -> None:
    """Everything to standard error: over stdio, standard output is the protocol's."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Any] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if settings.json_logs
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("DEBUG" if settings.debug else settings.log_level)
    for chatty in ("mcp", "alembic", "uvicorn.error", "trafilatura", "ddgs", "primp"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
