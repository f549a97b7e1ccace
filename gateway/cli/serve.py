"""Runs one gateway process: socket, schema, database, model server, HTTP server."""

import asyncio
import gc
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from gateway.config import ConfigError, Settings, list_renamed_settings

if TYPE_CHECKING:
    import uvicorn

    from gateway_runtime.parent_watchdog import ParentWatchdog
    from gateway_runtime.tls import ReloadableCertificate, TlsOptions


async def serve_gateway(settings: Settings, fd: int | None) -> None:
    """Serve until a signal stops the process.

    `fd`: a listening socket from the parent, for one worker of several; None: bind the configured address.

    Raises:
        ConfigError: a setting cannot be used.
    """
    from gateway.common import logging
    from gateway.mcp_client.server_config import load_servers
    from gateway_runtime import sockets, tls
    from gateway_runtime.child_processes import keep_descriptors_private
    from gateway_runtime.parent_watchdog import ParentWatchdog

    keep_descriptors_private()
    logging.configure_logging(json=settings.json_logs, level=settings.effective_log_level)
    _log_outdated_settings(settings)
    tls_options = tls.build_server_options(settings.tls_files)
    load_servers(settings)
    sockets.raise_open_file_limit()
    if fd is None:
        listener = sockets.bind_socket(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    else:
        listener = sockets.socket_from_fd(fd)
    # Imported here because it takes more than a second: errors in the settings above are reported at once.
    gc.disable()  # a collection during the imports finds no garbage
    from gateway.api.security.authentication import reject_open_gateway
    from gateway.app import create_app, reload_servers, stop_gateway
    from gateway.cli.first_key import ensure_api_key
    from gateway.server.http_server import GatewayHttpServer

    gc.freeze()
    gc.enable()
    watchdog = ParentWatchdog(settings.gateway_parent_fd) if settings.gateway_parent_fd is not None else None
    with open_postgres(settings) as url:
        await prepare_schema(settings, url)
        stored_keys = await _has_stored_keys(url)
        settings = ensure_api_key(settings, stored_keys=stored_keys)
        reject_open_gateway(settings, stored_keys=stored_keys)
        async with _open_model_server(settings, url) as complete_settings:
            wait_until_served = watchdog.wait_until_all_ready if watchdog and fd is not None else None
            app = create_app(complete_settings, wait_until_served=wait_until_served)
            loop = asyncio.get_running_loop()
            config = _build_server_config(app, settings, tls_options)
            certificate = _watch_certificate(settings, config)
            loop.add_signal_handler(signal.SIGHUP, partial(_reload, partial(reload_servers, app), certificate))
            stop = partial(stop_gateway, app, settings.shutdown_grace_seconds)
            server = GatewayHttpServer(config, lambda: _stop_turns(stop, loop, watchdog))
            await server.serve(sockets=[listener])


def _build_server_config(
    app: Callable[..., Awaitable[None]], settings: Settings, tls_options: "TlsOptions"
) -> "uvicorn.Config":
    import uvicorn

    from gateway_runtime.connection_limits import ConnectionLimits
    from gateway_runtime.http_protocol import limit_connections

    limits = ConnectionLimits(settings.max_connections, settings.max_source_connections, settings.trusted_proxies)
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.gateway_keep_alive_seconds,  # pyright: ignore[reportArgumentType] - accepts fractions
        timeout_graceful_shutdown=int(settings.shutdown_grace_seconds) + 2,
        server_header=False,
        http=limit_connections(limits),
        ws="none",
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),  # without it uvicorn trusts each program on this machine
        **tls_options,
    )


def _watch_certificate(settings: Settings, config: "uvicorn.Config") -> "ReloadableCertificate | None":
    from gateway_runtime.tls import ReloadableCertificate

    if settings.tls_files is None:
        return None
    config.load()
    assert config.ssl is not None
    return ReloadableCertificate(settings.tls_files, config.ssl)


def _reload(reload_servers: Callable[[], None], certificate: "ReloadableCertificate | None") -> None:
    """Read the configuration of the MCP servers and the certificate again."""
    from gateway.common.logging import get_logger

    log = get_logger(__name__)
    reload_servers()
    if certificate is None:
        return
    try:
        certificate.reload()
    except ConfigError as error:
        log.error("tls_certificate_refused", problem=str(error))
    else:
        log.info("tls_certificate_reloaded")


def _stop_turns(
    stop: Callable[[], Coroutine[object, object, None]],
    loop: asyncio.AbstractEventLoop,
    watchdog: "ParentWatchdog | None",
) -> None:
    if watchdog is not None:
        loop.call_soon_threadsafe(watchdog.stop_waiting)
    asyncio.run_coroutine_threadsafe(stop(), loop)


def _log_outdated_settings(settings: Settings) -> None:
    from gateway.common.logging import get_logger

    if settings.tools_server_secret is not None:
        get_logger(__name__).warning(
            "setting_deprecated", setting="TOOLS_SERVER_SECRET", instead="/.well-known/jwks.json"
        )
    for setting in list_renamed_settings():
        get_logger(__name__).warning("setting_renamed", old=setting.old_name, new=setting.new_name)


async def prepare_schema(settings: Settings, url: str) -> None:
    """Wait for the database, and migrate its schema if allowed.

    MIGRATE_ON_START allows it; the embedded Postgres is always migrated.

    Raises:
        DatabaseError: the database does not answer in time, or its schema is out of date.
    """
    from gateway.store import database, migrations
    from gateway.store.health import check_writes

    direct_url = await database.wait_for_addresses(url, settings)
    with database.raise_database_error(direct_url):
        missing = await migrations.list_missing_migrations(direct_url)
        if missing and (settings.migrate_on_start or settings.postgres_url is None):
            await asyncio.to_thread(migrations.upgrade_schema, direct_url)
        elif missing:
            raise database.DatabaseError("DATABASE_URL: the schema is not up to date: run `agent-gateway db upgrade`")
    await check_writes(url)


async def _has_stored_keys(url: str) -> bool:
    from gateway.store.api_keys import KeyStore
    from gateway.store.database import Database, raise_database_error

    database = Database(url, pool_size=1)
    try:
        with raise_database_error(url):
            return await KeyStore(database).has_keys()
    finally:
        await database.close()


@contextmanager
def open_postgres(settings: Settings) -> Generator[str]:
    """Yield the URL of Postgres.

    Without a configured one, the embedded Postgres runs for the length of the block, and is started again when it is
    gone.
    """
    if settings.postgres_url is not None:
        yield settings.postgres_url
        return
    from gateway.common.logging import get_logger
    from gateway_runtime.embedded_postgres import find_cluster
    from gateway_runtime.postgres.keeper import PostgresKeeper

    log = get_logger(__name__)
    server = find_cluster(settings.gateway_data_dir)
    with PostgresKeeper(
        server,
        on_lost=lambda: log.warning("embedded_postgres_lost"),
        on_failure=lambda error: log.error("embedded_postgres_failed", error=str(error)),
    ):
        yield server.build_url()


@asynccontextmanager
async def _open_model_server(settings: Settings, url: str) -> AsyncGenerator[Settings]:
    """Yield settings that name a database and a model server.

    Without a key, the simulated model server runs in this process.
    """
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
