"""Runs one gateway process: socket, schema, database, model server, HTTP server."""

import asyncio
import gc
import importlib
import signal
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING

from gateway.config import ConfigError, Settings, list_renamed_settings

if TYPE_CHECKING:
    import uvicorn

    from gateway_runtime.parent_watchdog import ParentWatchdog
    from gateway_runtime.tls import ReloadableCertificate, TlsOptions


WORKER_NAME = "gateway worker"
"""The name of a worker's process, where the system has such names."""


def serve_until_stopped(settings: Settings, fd: int | None) -> None:
    """Run `serve_gateway` in an event loop of its own."""
    from gateway_runtime.event_loop import event_loop_factory
    from gateway_runtime.process.memory import return_large_blocks

    return_large_blocks()
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        runner.run(serve_gateway(settings, fd))


async def serve_gateway(settings: Settings, fd: int | None) -> None:
    """Serve until a signal stops the process.

    `fd`: a listening socket from the parent, for one worker of several; None: bind the configured address.

    Raises:
        ConfigError: a setting cannot be used.
    """
    from gateway.mcp_client.server_config import load_servers
    from gateway.server.logs import configure_logs
    from gateway_runtime import sockets, tls
    from gateway_runtime.child_processes import keep_descriptors_private, set_process_name
    from gateway_runtime.parent_watchdog import ParentWatchdog

    keep_descriptors_private()
    configure_logs(settings)
    _log_outdated_settings(settings)
    tls_options = tls.build_server_options(settings.tls_files)
    load_servers(settings)
    sockets.raise_open_file_limit()
    if fd is None:
        listener = sockets.bind_socket(settings.gateway_host, settings.gateway_port, setting="GATEWAY_PORT")
    else:
        set_process_name(WORKER_NAME)
        listener = sockets.socket_from_fd(fd)
    load_application()  # after the checks above, so that errors of settings are reported at once
    from gateway.app import create_app, reload_servers, stop_gateway
    from gateway.server.http_server import GatewayHttpServer
    from gateway.server.services import open_services

    watchdog = ParentWatchdog(settings.gateway_parent_fd) if settings.gateway_parent_fd is not None else None
    async with open_services(settings) as complete_settings:
        wait_until_served = watchdog.wait_until_all_ready if watchdog and fd is not None else None
        app = create_app(complete_settings, wait_until_served=wait_until_served)
        loop = asyncio.get_running_loop()
        config = _build_server_config(app, settings, tls_options)
        certificate = _watch_certificate(settings, config)
        loop.add_signal_handler(signal.SIGHUP, partial(_reload, partial(reload_servers, app), certificate))
        stop = partial(stop_gateway, app, settings.shutdown_grace_seconds)
        server = GatewayHttpServer(config, lambda: _stop_turns(stop, loop, watchdog))
        await server.serve(sockets=[listener])


def load_application() -> None:
    """Import what serves requests, which takes a second.

    Its models are built at their first use, except in a forked worker, which shares the built ones with the others.
    """
    from gateway_runtime.process.deferred_models import defer_models

    gc.disable()  # a collection during the imports finds no garbage
    with defer_models():
        importlib.import_module("gateway.app")
        importlib.import_module("gateway.server.http_server")
    gc.freeze()
    gc.enable()


def _build_server_config(
    app: Callable[..., Awaitable[None]], settings: Settings, tls_options: "TlsOptions"
) -> "uvicorn.Config":
    import uvicorn

    from gateway_runtime.connections.limits import ConnectionLimits
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
