"""The SDK's dispatcher, with a shorter way for tool calls."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from mcp import MCPError
from mcp.client._transport import TransportStreams
from mcp.shared.dispatcher import CallOptions, ProgressFnT
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.types import REQUEST_TIMEOUT, ErrorData, RequestId

from gateway.domain.messages import JsonObject
from gateway.mcp_client.connection.message_tap import MessageTap
from gateway.mcp_client.http.direct_calls import DirectCallTransport, UnusualOutcome
from gateway_runtime.telemetry.trace_context import is_tracing

_CANCEL_SECONDS = 5.0
_CALL_OPTIONS = frozenset({"timeout", "on_progress", "headers"})


class CallDispatcher(JSONRPCDispatcher):
    """Sends tool calls through a transport of their own.

    All other messages go through the streams, and calls too if there is no such transport. The streams also get the
    outcomes that are more than a result: errors, answers of several events, redirects. With tracing they get all calls,
    since the SDK has their spans.
    """

    def __init__(self, streams: TransportStreams, tap: MessageTap, transport: DirectCallTransport | None) -> None:
        super().__init__(*streams)
        self._tap = tap
        self._transport = transport

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
        *,
        _related_request_id: RequestId | None = None,
    ) -> JsonObject:
        """Send a request and return its result.

        Raises:
            MCPError: the server's error, or one of the SDK's.
        """
        options, transport = opts or {}, self._transport
        is_direct = transport is not None and transport.is_usable and self._running and not is_tracing()
        if transport is None or method != "tools/call" or not is_direct or not options.keys() <= _CALL_OPTIONS:
            return await super().send_raw_request(method, params, opts, _related_request_id=_related_request_id)
        request_id, sent_params = self._allocate_id(), {**(params or {})}
        outcome = await self._send_call(transport, request_id, sent_params, options)
        if not isinstance(outcome, UnusualOutcome):
            await self._tap.on_result(request_id, outcome)
            return outcome
        async with outcome.leave_to_sdk():
            return await super().send_raw_request(method, sent_params, {**options, "request_id": request_id})

    async def _send_call(
        self, transport: DirectCallTransport, request_id: RequestId, params: JsonObject, options: CallOptions
    ) -> JsonObject | UnusualOutcome:
        """Send a call, and note in `params` what the gateway adds."""
        if "on_progress" in options:
            params["_meta"] = {**(params.get("_meta") or {}), "progressToken": request_id}
        self._tap.on_request(request_id, "tools/call", params)
        message = {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}
        call = _DirectCall(options.get("timeout"), options.get("on_progress"))
        self._pending[request_id] = cast("Any", call)
        try:
            try:
                async with call.limit:
                    return await transport.send_call(request_id, message, options.get("headers") or {})
            finally:
                self._pending.pop(request_id, None)  # before any wait: the call takes no outcome after its exchange
        except TimeoutError:
            if call.outcome is not None:
                return call.get_result()
            await self._cancel_call(request_id, "timed out")
            raise MCPError(code=REQUEST_TIMEOUT, message="Request 'tools/call' timed out") from None
        except asyncio.CancelledError:
            await self._cancel_call(request_id, "caller cancelled")
            raise

    async def _cancel_call(self, request_id: RequestId, reason: str) -> None:
        """Tell the server, also while the caller is cancelled."""
        await self._final_write(
            partial(self._cancel_outbound, request_id, reason, None),
            shield=True,
            timeout=_CANCEL_SECONDS,
            describe=f"cancellation of call {request_id!r}",
        )


class _DirectCall:
    """A call among the SDK's pending requests.

    An answer on another stream, or the end of the session, ends its exchange.
    """

    def __init__(self, seconds: float | None, on_progress: ProgressFnT | None) -> None:
        self.limit = asyncio.timeout(seconds)
        self.on_progress = on_progress
        self.send = self
        self.outcome: JsonObject | ErrorData | None = None

    def send_nowait(self, outcome: JsonObject | ErrorData) -> None:
        """Take the outcome, as the SDK's stream for it does."""
        if self.outcome is None and not self.limit.expired():
            self.outcome = outcome
            self.limit.reschedule(0.0)

    def get_result(self) -> JsonObject:
        """Return the result, or raise the server's error."""
        if isinstance(self.outcome, ErrorData):
            raise MCPError(self.outcome.code, self.outcome.message, self.outcome.data)
        assert self.outcome is not None
        return self.outcome
