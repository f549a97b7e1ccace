"""Tool calls and other requests to MCP servers.

The MCP SDK itself has spans for the requests and their trace context in `_meta`.
"""

import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

from gateway.common.redaction import Redactor
from gateway.domain.errors import GatewayError
from gateway.domain.messages import JsonObject, PendingInput, Principal, ToolResult, ToolSpec
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.observation import families as f
from gateway.observation import names as n
from gateway.observation.content import encode_content
from gateway.ports.observer import AttributeValue, Observer, Span, TraceHeaders
from gateway.ports.tools import HostExchange, Toolbox, ToolCallRequest

T = TypeVar("T")

_ANY_SERVER = "any"
tool_parent: ContextVar[TraceHeaders | None] = ContextVar("tool_parent", default=None)
"""The span that tool calls belong to: a turn or a program.

A call may start while the model still answers, but it is no part of the model's call.
"""


class ObservedToolbox(ToolboxWrapper):
    """A toolbox whose calls are spans.

    Their names are those that models and hosts use.
    """

    def __init__(self, toolbox: Toolbox, observer: Observer, redactor: Redactor) -> None:
        super().__init__(toolbox)
        self._observer = observer
        self._redactor = redactor

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        """See `Toolbox.call_tool`."""
        observer, spec, started_at = self._observer, request.spec, time.perf_counter()
        outcome = "error"
        name = f"execute_tool {spec.name}"
        with observer.open_span(name, _describe_tool(spec), parent=tool_parent.get()) as span:
            if observer.captures_content:
                arguments = self._redactor.redact_value(request.arguments)
                span.set_attributes({n.TOOL_ARGUMENTS: encode_content(arguments)})
            try:
                result = await super().call_tool(request)
                outcome = "input_required" if isinstance(result, PendingInput) else result.outcome
            except GatewayError as error:
                span.fail(error.code)
                raise
            finally:
                server = spec.server or _ANY_SERVER
                observer.increase_counter(f.TOOL_CALLS, 1, server, spec.tool, outcome)
                observer.record_value(f.TOOL_DURATION, time.perf_counter() - started_at, server, spec.tool)
            self._describe_result(span, result, outcome)
            return result

    def _describe_result(self, span: Span, result: ToolResult | PendingInput, outcome: str) -> None:
        span.set_attributes({n.OUTCOME: outcome})
        if outcome in ("error", "denied", "unknown"):
            span.fail("tool_error" if outcome == "error" else outcome)
        if self._observer.captures_content and isinstance(result, ToolResult):
            content = self._redactor.redact_blocks(result.content)
            span.set_attributes({n.TOOL_RESULT: encode_content(content)})

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        """See `Toolbox.read_resource`."""
        return await self._time("resources/read", server, super().read_resource(uri, principal, server, exchange))

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        """See `Toolbox.get_prompt`."""
        prompt = super().get_prompt(name, arguments, principal, server, exchange)
        return await self._time("prompts/get", server, prompt)

    async def _time(self, method: str, server: str | None, answer: Awaitable[T]) -> T:
        started_at = time.perf_counter()
        try:
            return await answer
        finally:
            seconds = time.perf_counter() - started_at
            self._observer.record_value(f.MCP_DURATION, seconds, server or _ANY_SERVER, method)


class ObservedServers(ToolboxWrapper):
    """The toolbox of the MCP servers, inside of the policy.

    Only calls that reach a server count.
    """

    def __init__(self, toolbox: Toolbox, observer: Observer) -> None:
        super().__init__(toolbox)
        self._observer = observer

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        """See `Toolbox.call_tool`."""
        started_at = time.perf_counter()
        try:
            return await super().call_tool(request)
        finally:
            seconds = time.perf_counter() - started_at
            self._observer.record_value(f.MCP_DURATION, seconds, request.spec.server or _ANY_SERVER, "tools/call")


def _describe_tool(spec: ToolSpec) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {n.OPERATION: "execute_tool", n.TOOL: spec.name, n.TOOL_TYPE: "function"}
    return attributes | ({n.SERVER: spec.server} if spec.server else {})
