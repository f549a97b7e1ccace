"""`agent-gateway mcp-stdio`: a running gateway as an MCP server over stdio."""

import asyncio
from typing import Annotated

import typer

from gateway.cli.errors import report_config_errors
from gateway.common.logging import configure_logging
from gateway.config import load_settings


def serve_stdio(
    toolset: Annotated[str | None, typer.Argument(help="Toolset to serve. Default: all tools.")] = None,
    url: Annotated[
        str | None, typer.Option(help="URL of the gateway. Default: this machine, port GATEWAY_PORT.")
    ] = None,
) -> None:
    """Serve a running gateway's tools to a host that starts commands.

    The key is API_KEY in the environment.
    """
    import httpx2

    from gateway.mcp_client.http_transport import get_ssl_context
    from gateway.mcp_client.stdio.bridge import run_bridge
    from gateway_runtime import tls

    with report_config_errors():
        settings = load_settings()
        context = None if url else tls.build_client_context(settings.tls_files)
    base = (url or settings.local_url).rstrip("/").removesuffix("/mcp")
    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"} if settings.api_key else {}
    address = f"{base}/mcp/{toolset}" if toolset else f"{base}/mcp"
    configure_logging(json=False, level="WARNING")
    transport = httpx2.AsyncHTTPTransport(verify=context or get_ssl_context())
    asyncio.run(run_bridge(address, headers, transport))
