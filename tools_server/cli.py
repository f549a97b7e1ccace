"""The command `tools-server`.

It runs the MCP server over streamable HTTP, or over stdio for a host that starts it.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from gateway_runtime import embedded_postgres, tls
from gateway_runtime.background.tasks import SupervisedTask
from gateway_runtime.child_processes import keep_descriptors_private
from gateway_runtime.event_loop import event_loop_factory
from gateway_runtime.parent_watchdog import stop_with_parent
from gateway_runtime.postgres.keeper import PostgresKeeper
from gateway_runtime.process.memory import return_large_blocks
from gateway_runtime.sockets import bind_socket
from gateway_runtime.telemetry.signals import load_standard_variables, read_signals
from tools_server.config import ConfigError, Settings, list_renamed_settings, load_settings
from tools_server.http_server import HttpServer, log_tls_doubt
from tools_server.log import configure_logging

if TYPE_CHECKING:
    from gateway_runtime.telemetry.observer import Telemetry
    from tools_server.server import ToolServer

_BACKLOG = 2048
log = structlog.stdlib.get_logger(__name__)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    stdio: Annotated[bool, typer.Option("--stdio", help="Speak MCP over standard input and output.")] = False,
    reencrypt: Annotated[
        bool,
        typer.Option("--reencrypt", help="Encrypt the secrets of defined tools again, with the current key, and end."),
    ] = False,
) -> None:
    """Run the tool server: over HTTP at /mcp, or over stdio."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
    keep_descriptors_private()
    return_large_blocks()
    try:
        settings = load_settings()
        load_standard_variables()
        traces = read_signals(os.environ).traces
        configure_logging(json=settings.json_logs, level=settings.effective_log_level, adds_trace_ids=traces)
        for setting in list_renamed_settings():
            log.warning("setting_renamed", old=setting.old_name, new=setting.new_name)
        if reencrypt:
            with run_embedded_postgres(settings) as postgres:
                raise typer.Exit(asyncio.run(reencrypt_secrets(settings, postgres)))
        tls_options = tls.build_server_options(None if stdio else settings.tls_files, log_tls_doubt)
        listener = None if stdio else _bind_listener(settings)
        with run_embedded_postgres(settings) as postgres, asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(run_server(settings, postgres, listener, tls_options))
    except (ConfigError, embedded_postgres.EmbeddedPostgresError) as error:
        sys.stderr.write(f"{error}\n")
        raise typer.Exit(2) from None


async def reencrypt_secrets(settings: Settings, postgres: PostgresKeeper | None) -> int:
    """Encrypt the stored secrets with the current key; return the exit code."""
    from tools_server.common.database import DatabaseUnavailable, ToolsDatabase
    from tools_server.http_tools.secrets import SecretCipher
    from tools_server.http_tools.store import DefinitionStore

    database = ToolsDatabase(settings.postgres_url or (postgres.server.build_url() if postgres else ""))
    try:
        count, unreadable = await DefinitionStore(database).replace_secrets(SecretCipher(settings).reencrypt)
    except DatabaseUnavailable:
        sys.stderr.write("The database is unavailable.\n")
        return 1
    finally:
        await database.close()
    sys.stdout.write(f"{count} secrets are encrypted with the current key.\n")
    for origin, name in unreadable:
        sys.stdout.write(f"No configured key decrypts the secret {name} of {origin}.\n")
    return 1 if unreadable else 0


def _exit_on_signal(_number: int, _frame: object) -> None:
    """Handler of SIGTERM until the server has installed its own."""
    sys.exit(0)


async def run_server(
    settings: Settings,
    postgres: PostgresKeeper | None,
    listener: socket.socket | None,
    tls_options: tls.TlsOptions,
) -> None:
    """Serve until stopped.

    Without a listener, serve over stdio. `postgres` stores the tasks if no database is configured.
    """
    # Imported here because they take most of a second: a broken setting or a taken port is reported before that.
    gc.disable()  # imports leave no garbage, and collecting would take a fifth of their time
    from tools_server.common.telemetry import create_telemetry, observe_messages, run_telemetry
    from tools_server.http_tools.secrets import SecretCipher
    from tools_server.migrations import upgrade_when_available
    from tools_server.server import VERSION, create_server
    from tools_server.tasks.store import TaskStore

    gc.freeze()
    gc.enable()
    telemetry = create_telemetry(settings, VERSION)
    url = settings.postgres_url or (postgres.server.build_url() if postgres else "")
    store = TaskStore(url)
    mcp = create_server(settings, store)
    if telemetry is not None:
        observe_messages(mcp, settings, telemetry, over_stdio=listener is None)
    SecretCipher(settings).load()
    upgrade = partial(upgrade_when_available, settings.direct_postgres_url or url)
    migrations = SupervisedTask("migrations", upgrade, restart=False)
    migrations.start()
    try:
        async with run_telemetry(settings, telemetry, VERSION):
            await _serve(mcp, settings, telemetry, postgres, listener, tls_options)
    finally:
        await migrations.stop()
        await store.close()


async def _serve(
    mcp: "ToolServer",
    settings: Settings,
    telemetry: "Telemetry | None",
    postgres: PostgresKeeper | None,
    listener: socket.socket | None,
    tls_options: tls.TlsOptions,
) -> None:
    from tools_server.server import create_app

    if listener is None:
        async with mcp.run_definitions():
            await _serve_stdio(mcp, postgres.stop if postgres else None)
        return
    _warn_about_tokens(settings)
    if settings.gateway_parent_fd is not None:
        stop_with_parent(settings.gateway_parent_fd)
    app = create_app(mcp, settings, telemetry)
    server = HttpServer(
        app,
        mcp.close_listen_streams,
        tls_options,
        settings.tls_files,
        keep_alive_seconds=settings.tools_server_keep_alive_seconds,
    )
    server.reload_certificate_at_hangup()
    await server.serve(sockets=[listener])


def _warn_about_tokens(settings: Settings) -> None:
    """Log a deprecated setting, and a server that can verify no token."""
    if settings.tools_server_secret is not None:
        log.warning("setting_deprecated", setting="TOOLS_SERVER_SECRET", instead="TOOLS_SERVER_GATEWAY_JWKS_URL")
    keys = settings.gateway_keys
    has_keys = settings.tools_server_secret is not None or isinstance(keys, str) or keys.exists()
    if settings.requires_token and settings.tools_server_oauth_issuer is None and not has_keys:
        reason = f"neither TOOLS_SERVER_GATEWAY_JWKS_URL is set nor does a gateway's {keys} exist"
        log.warning("all_calls_rejected", reason=reason)


async def _serve_stdio(mcp: "ToolServer", before_exit: Callable[[], None] | None) -> None:
    def exit_process() -> None:
        """Exit the process, because nothing can interrupt a read of standard input."""
        if before_exit is not None:
            before_exit()
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, exit_process)
    await mcp.run_stdio_async()


@contextlib.contextmanager
def run_embedded_postgres(settings: Settings) -> Generator[PostgresKeeper | None]:
    """Run the embedded Postgres if no database is configured.

    Yield None if a database is configured. A gateway on the same data directory shares the embedded Postgres.
    """
    if settings.postgres_url is not None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            server = embedded_postgres.find_cluster(settings.gateway_data_dir)
            keeper = stack.enter_context(PostgresKeeper(server, on_lost=_log_loss, on_failure=_log_postgres_failure))
        except OSError as error:
            raise ConfigError(f"GATEWAY_DATA_DIR: {error}") from None
        for note in server.notes:
            log.info("embedded_postgres_noted", note=note)
        yield keeper


def _log_loss() -> None:
    log.warning("embedded_postgres_lost")


def _log_postgres_failure(error: Exception) -> None:
    log.error("embedded_postgres_failed", error=str(error))


def _bind_listener(settings: Settings) -> socket.socket:
    return bind_socket(
        settings.tools_server_host,
        settings.tools_server_port,
        setting="TOOLS_SERVER_PORT",
        host_setting="TOOLS_SERVER_HOST",
        backlog=_BACKLOG,
    )


def main() -> None:
    """Run the command, then exit at once.

    A thread of an abandoned search would delay the interpreter's exit.
    """
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
