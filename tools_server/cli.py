"""`tools-server`: the MCP server over streamable HTTP, or over stdio for a host that starts it."""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from gateway_runtime import embedded_postgres, tls
from gateway_runtime.event_loop import event_loop_factory
from gateway_runtime.parent_watchdog import stop_with_parent
from gateway_runtime.sockets import bind_socket
from tools_server.config import ConfigError, Settings, list_renamed_settings, load_settings
from tools_server.http_server import HttpServer
from tools_server.log import configure

if TYPE_CHECKING:
    from tools_server.server import ToolServer

_POSTGRES_LOOK = 2.0
_BACKLOG = 2048
log = structlog.stdlib.get_logger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    stdio: Annotated[bool, typer.Option("--stdio", help="Speak MCP over standard input and output.")] = False,
) -> None:
    """Run the tool server: over HTTP at /mcp, or over stdio."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        settings = load_settings()
        configure(json=settings.json_logs, level=settings.effective_log_level)
        for setting in list_renamed_settings():
            log.warning("setting_renamed", old=setting.old_name, new=setting.new_name)
        tls_options: tls.TlsOptions = {} if stdio else tls.build_server_options(settings.tls_files)
        listener = None if stdio else _bind_listener(settings)
        with postgres(settings) as server, asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(run(settings, server, listener, tls_options))
    except (ConfigError, embedded_postgres.EmbeddedPostgresError) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from None


def _leave(_number: int, _frame: object) -> None:
    """Until the server has its own way to end."""
    sys.exit(0)


async def run(
    settings: Settings,
    server: embedded_postgres.EmbeddedPostgres | None,
    listener: socket.socket | None,
    tls_options: tls.TlsOptions,
) -> None:
    """Serve until told to stop; over stdio where there is no listener, tasks in `server` where no address is set."""
    # Here, as they take most of a second to import: a broken setting or a taken port is told at once.
    gc.disable()  # nothing of what is imported is garbage, and to look for some takes a fifth as long again
    from tools_server.migrations import upgrade_when_there
    from tools_server.server import create_app, create_server
    from tools_server.tasks.store import TaskStore

    gc.freeze()
    gc.enable()
    url = settings.postgres_url or (server.build_url() if server else "")
    store = TaskStore(url)
    mcp = create_server(settings, store)
    beside = [asyncio.create_task(upgrade_when_there(url), name="migrations")]
    if server is not None:
        beside.append(asyncio.create_task(_keep_running(server), name="postgres"))
    try:
        if listener is None:
            await _serve_stdio(mcp, server.stop_if_started_here if server else None)
        else:
            if not settings.on_loopback and settings.tools_server_secret is None:
                log.warning("every_call_is_refused", reason="TOOLS_SERVER_SECRET is not set, and the host not loopback")
            if settings.gateway_parent_fd is not None:
                stop_with_parent(settings.gateway_parent_fd)
            await HttpServer(create_app(mcp, settings), mcp.end_listening, tls_options).serve(sockets=[listener])
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await store.close()


async def _serve_stdio(mcp: "ToolServer", release: Callable[[], None] | None) -> None:
    def leave() -> None:
        """Nothing can interrupt the reading of standard input, so this is the end."""
        if release is not None:
            release()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    await mcp.run_stdio_async()


@contextlib.contextmanager
def postgres(settings: Settings) -> Generator[embedded_postgres.EmbeddedPostgres | None]:
    """The embedded Postgres, shared with a gateway on the same data directory; None where an address is configured."""
    if settings.postgres_url is not None:
        yield None
        return
    try:
        server = embedded_postgres.start_or_attach(settings.gateway_data_dir)
    except OSError as error:
        raise ConfigError(f"GATEWAY_DATA_DIR: {error}") from None
    for note in server.notes:
        log.info("embedded_postgres", note=note)
    try:
        yield server
    finally:
        server.stop_if_started_here()


async def _keep_running(server: embedded_postgres.EmbeddedPostgres) -> None:
    """Whoever started it may stop it, and go. In the main thread: the kernel ends Postgres with the one it began in."""
    while True:
        await asyncio.sleep(_POSTGRES_LOOK)
        try:
            server.ensure_running()
        except (embedded_postgres.EmbeddedPostgresError, OSError) as error:
            log.error("embedded_postgres", error=str(error))


def _bind_listener(settings: Settings) -> socket.socket:
    listener = bind_socket(
        settings.tools_server_host,
        settings.tools_server_port,
        setting="TOOLS_SERVER_PORT",
        host_setting="TOOLS_SERVER_HOST",
        inheritable=False,
    )
    listener.listen(_BACKLOG)
    return listener


def main() -> None:
    """Ends at once when the command has: a thread of a search that was given up would hold up the interpreter's end."""
    code: object = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    main()
