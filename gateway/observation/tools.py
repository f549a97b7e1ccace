"""Tool calls and other requests to MCP servers.

The MCP SDK itself has spans for the requests and their trace context in `_meta`.
"""

import time
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

from gateway.domain.messages import JsonObject, PendingInput, Principal, ToolResult, ToolSpec
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.observation import families as f
from gateway.observation import names as n
from gateway.observation.error_types import find_error_type
from gateway.ports.observer import AttributeValue, Observer, Span, TraceHeaders
from gateway.ports.tools import HostExchange, Toolbox, ToolCallRequest
from gateway_runtime.redaction.redactor import Redactor
from gateway_runtime.telemetry.content import encode_content

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
            error_type = ""
            try:
                result = await super().call_tool(request)
                outcome, error_type = _describe_outcome(result)
            except BaseException as error:
                error_type = find_error_type(error)
                raise
            finally:
                server, seconds = spec.server or _ANY_SERVER, time.perf_counter() - started_at
                observer.increase_counter(f.TOOL_CALLS, 1, server, spec.tool, outcome)
                observer.record_value(f.TOOL_DURATION, seconds, server, spec.tool, error_type)
            span.set_attributes({n.OUTCOME: outcome})
            if error_type:
                span.fail(error_type)
            self._describe_content(span, result)
            return result

    def _describe_content(self, span: Span, result: ToolResult | PendingInput) -> None:
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
        started_at, error_type = time.perf_counter(), ""
        try:
            return await answer
        except BaseException as error:
            error_type = find_error_type(error)
            raise
        finally:
            seconds = time.perf_counter() - started_at
            self._observer.record_value(f.MCP_DURATION, seconds, server or _ANY_SERVER, method, "", error_type)


class ObservedServers(ToolboxWrapper):
    """The toolbox of the MCP servers, inside of the policy.

    Only calls that reach a server count.
    """

    def __init__(self, toolbox: Toolbox, observer: Observer) -> None:
        super().__init__(toolbox)
        self._observer = observer

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        """See `Toolbox.call_tool`."""
        started_at, error_type = time.perf_counter(), ""
        try:
            result = await super().call_tool(request)
            _, error_type = _describe_outcome(result)
            return result
        except BaseException as error:
            error_type = find_error_type(error)
            raise
        finally:
            seconds, spec = time.perf_counter() - started_at, request.spec
            labels = (spec.server or _ANY_SERVER, "tools/call", spec.tool, error_type)
            self._observer.record_value(f.MCP_DURATION, seconds, *labels)


def _describe_outcome(result: ToolResult | PendingInput) -> tuple[str, str]:
    """Return the outcome of a call, and its type of error."""
    if isinstance(result, PendingInput):
        return "input_required", ""
    return result.outcome, {"ok": "", "error": "tool_error"}.get(result.outcome, result.outcome)


def _describe_tool(spec: ToolSpec) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {n.OPERATION: "execute_tool", n.TOOL: spec.name, n.TOOL_TYPE: "function"}
    return attributes | ({n.SERVER: spec.server} if spec.server else {})
