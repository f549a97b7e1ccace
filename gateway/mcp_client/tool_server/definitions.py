"""Client of the tool server's `/definitions`."""

from collections.abc import Callable
from typing import Any, Literal, cast
from urllib.parse import quote

import httpx2
import msgspec

from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger
from gateway.domain.errors import (
    Conflict,
    Forbidden,
    GatewayError,
    InvalidRequest,
    McpServerError,
    NotFound,
    PayloadTooLarge,
)
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, Principal
from gateway.mcp_client.caller_identity import TokenIssuer, acting_for
from gateway.mcp_client.http.proxy import find_proxy
from gateway.mcp_client.http_transport import get_ssl_context
from gateway.ports.definitions import DefinitionForwarder
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

TOOL_SERVER_NAME = "tools"
"""Name of the tool server among the MCP servers.

The server of MCP_SERVER_URL has it, too.
"""
DEFINE_SCOPE = "tools:define"
_TIMEOUT_SECONDS = 130.0
"""More than the longest test call of a definition."""
_MAX_ANSWER_BYTES = 32 * 1024 * 1024
_ERRORS: dict[int, type[GatewayError]] = {404: NotFound, 409: Conflict, 413: PayloadTooLarge, 422: InvalidRequest}


class DefinitionClient(DefinitionForwarder):
    """See `DefinitionForwarder`. The server's entry must send the users' identity."""

    def __init__(self, find_server: Callable[[str], ServerConfig], issuer: TokenIssuer) -> None:
        self._find_server = find_server
        self._issuer = issuer

    async def forward(
        self, principal: Principal, method: Literal["GET", "POST", "PATCH", "DELETE"], path: str, body: bytes | None
    ) -> JsonObject:
        """See `DefinitionForwarder.forward`."""
        is_limited = principal.tools is not None or principal.toolset is not None
        if is_limited or not principal.can_use_server(TOOL_SERVER_NAME):
            raise Forbidden("Your key is limited to some tools or servers, so it cannot define tools.")
        config = self._find_tool_server()
        url = f"{config.url.rstrip('/').removesuffix('/mcp')}/definitions{quote(path)}"
        try:
            with acting_for(principal):
                async with Deadline.after(_TIMEOUT_SECONDS).limit():
                    status, content = await self._exchange(config, method, url, body)
        except (TimeoutError, httpx2.HTTPError) as error:
            log.warning("definitions_unavailable", error=type(error).__name__)
            message = "The tool server did not answer. The change may have been made."
            raise McpServerError(message if method != "GET" else "The tool server did not answer.") from None
        return _read_answer(status, content)

    def _find_tool_server(self) -> ServerConfig:
        try:
            config = self._find_server(TOOL_SERVER_NAME)
        except NotFound:
            config = None
        if config is None or config.transport != "http" or config.identity != "gateway":
            message = (
                f"Tools are defined at the tool server: the MCP server {TOOL_SERVER_NAME!r}, over HTTP, "
                'with "identity": "gateway". There is none.'
            )
            raise McpServerError(message)
        return config

    async def _exchange(self, config: ServerConfig, method: str, url: str, body: bytes | None) -> tuple[int, bytes]:
        proxy = find_proxy(url) if config.proxy else None
        inner = httpx2.AsyncHTTPTransport(verify=get_ssl_context(), proxy=proxy)
        transport = self._issuer.create_transport(inner, config.token_audience, DEFINE_SCOPE)
        headers = {"Content-Type": "application/json"} if body is not None else {}
        async with (
            httpx2.AsyncClient(transport=transport, timeout=_TIMEOUT_SECONDS, headers=config.headers) as client,
            client.stream(method, url, content=body, headers=headers) as response,
        ):
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _MAX_ANSWER_BYTES:
                    raise McpServerError("The answer of the tool server is too large.")
            return response.status_code, bytes(content)


def _read_answer(status: int, content: bytes) -> JsonObject:
    try:
        answer: Any = msgspec.json.decode(content) if content else {}
    except JSON_DECODE_ERRORS:
        answer = None
    if isinstance(answer, dict) and status < 300:
        return cast(JsonObject, answer)
    error = cast("dict[str, Any]", answer).get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        raise McpServerError("The tool server does not answer as one: is the MCP server `tools` one of this release?")
    fields = cast("dict[str, Any]", error)
    message, param = str(fields.get("message"))[:2_000], fields.get("param")
    if (kind := _ERRORS.get(status)) is not None:
        raise kind(message, param=param if isinstance(param, str) else None)
    if status in (401, 403):
        raise McpServerError("The tool server does not accept this gateway's tokens.")
    raise McpServerError(message)
