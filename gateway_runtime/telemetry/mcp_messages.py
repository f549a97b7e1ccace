"""Observation of the messages that an MCP server answers.

It has their metric, and adds attributes to the SDK's spans.

It is a middleware of the SDK's server, inside of the one that opens the span. It knows the SDK by its shapes alone.
"""

import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, cast

from gateway_runtime.redaction.redactor import Redactor
from gateway_runtime.telemetry.content import encode_content
from gateway_runtime.telemetry.families import MCP_SECONDS, MetricFamily
from gateway_runtime.telemetry.observer import AttributeValue, Telemetry

DURATION = "mcp.server.operation.duration"
FAMILY = MetricFamily(
    DURATION,
    "histogram",
    "MCP messages that this server answered.",
    ("mcp.method.name", "gen_ai.tool.name", "mcp.protocol.version", "error.type"),
    "s",
    MCP_SECONDS,
)
_METHODS = frozenset(
    {
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "server/discover",
        "subscriptions/listen",
        "tools/call",
        "tools/list",
    }
)
_VERSIONS = frozenset({"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"})
_OTHER = "_OTHER"
"""Label of names that only a client knows.

Their number has no bound.
"""


class McpMessageObserver:
    """Observes the messages of one server.

    `has_tool` tells whether a name is that of a tool; `transport` is `tcp` or `pipe`.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        redactor: Redactor,
        has_tool: Callable[[Any, str], bool],
        transport: Literal["tcp", "pipe"] = "tcp",
    ) -> None:
        self._telemetry = telemetry
        self._redactor = redactor
        self._has_tool = has_tool
        self._attributes: dict[str, AttributeValue] = {"network.transport": transport}
        if transport == "tcp":
            self._attributes["network.protocol.name"] = "http"

    async def __call__(self, ctx: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Handle a message as a middleware of the SDK's server."""
        started_at, error_type = time.perf_counter(), ""
        is_call = ctx.method == "tools/call"
        params: Mapping[str, Any] = ctx.params or {}
        self._telemetry.describe_current_span(self._attributes)
        if is_call:
            self._capture("gen_ai.tool.call.arguments", lambda: self._redactor.redact_value(params.get("arguments")))
        try:
            result = await call_next(ctx)
            if is_call:
                error_type = "tool_error" if _is_tool_error(result) else ""
                self._capture("gen_ai.tool.call.result", lambda: self._redactor.redact_blocks(_read_blocks(result)))
            return result
        except BaseException as error:
            error_type = _find_error_type(error)
            raise
        finally:
            labels = (
                ctx.method if ctx.method in _METHODS else _OTHER,
                self._name_tool(ctx, params) if is_call else "",
                ctx.protocol_version if ctx.protocol_version in _VERSIONS else _OTHER,
                error_type,
            )
            self._telemetry.record_value(DURATION, time.perf_counter() - started_at, *labels)

    def _name_tool(self, ctx: Any, params: Mapping[str, Any]) -> str:
        name = params.get("name")
        return name if isinstance(name, str) and self._has_tool(ctx, name) else _OTHER

    def _capture(self, attribute: str, read: Callable[[], object]) -> None:
        if self._telemetry.captures_content:
            self._telemetry.describe_current_span({attribute: encode_content(read())})


def _is_tool_error(result: Any) -> bool:
    return _read_field(result, "isError", "is_error") is True


def _read_blocks(result: Any) -> list[dict[str, object]]:
    blocks = cast("list[Any]", _read_field(result, "content", "content") or [])
    return [_dump_block(block) for block in blocks]


def _dump_block(block: Any) -> dict[str, object]:
    if isinstance(block, dict):
        return cast("dict[str, object]", block)
    return block.model_dump(mode="json", by_alias=True, exclude_none=True)


def _read_field(result: Any, key: str, attribute: str) -> Any:
    """Return a field of a result.

    It is a model, or what a middleware inside made of one.
    """
    return cast("dict[str, Any]", result).get(key) if isinstance(result, dict) else getattr(result, attribute, None)


def _find_error_type(error: BaseException) -> str:
    """Return the code or class of an error."""
    code = getattr(getattr(error, "error", None), "code", None)
    if isinstance(code, int):
        return str(code)
    return "cancelled" if isinstance(error, CancelledError) else type(error).__name__
