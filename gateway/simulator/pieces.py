"""Responses of the simulator that end early or break, by its faults."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.domain.messages import JsonObject
from gateway.simulator.faults import Fault
from gateway.simulator.request import ApiError

_PIECE_BYTES = 16 * 1024
TrackStream = Callable[[Coroutine[object, object, None], Receive], Awaitable[None]]
Flow = Callable[[], Awaitable[None]]


class Aborted(Exception):
    """Raised to make uvicorn drop the connection without ending the body."""


class PiecedResponse(Response):
    """A body in pieces, between which faults apply."""

    def __init__(
        self, content: bytes, media_type: str, faults: dict[str, Fault], track: TrackStream, flow: Flow
    ) -> None:
        super().__init__(media_type=media_type)
        self.headers["content-length"] = str(len(content))
        self._track = track
        self._flow = flow
        self._content = content
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._track(self._send_pieces(send), receive)

    async def _send_pieces(self, send: Send) -> None:
        if (slow_start := self._faults.get("slow_first_token")) is not None:
            await asyncio.sleep(slow_start.seconds)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        for number, start in enumerate(range(0, len(self._content), _PIECE_BYTES)):
            for kind, fault in self._faults.items():
                if fault.after_chunks != number:
                    continue
                if kind == "stall":
                    await asyncio.sleep(fault.seconds)
                if kind == "abort":
                    raise Aborted
            await send(
                {
                    "type": "http.response.body",
                    "body": self._content[start : start + _PIECE_BYTES],
                    "more_body": True,
                }
            )
            await self._flow()
        await send({"type": "http.response.body", "body": b""})


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def raise_fault(faults: dict[str, Fault]) -> None:
    if (fault := faults.get("status")) is not None:
        raise ScriptedError(fault)
    malformed = faults.get("malformed_tool_call")
    if malformed is not None and not malformed.after_chunks:
        raise ScriptedError(Fault(kind="status", status=400, body={"error": make_tool_use_failed(malformed)}))


def make_tool_use_failed(fault: Fault) -> JsonObject:
    return {
        "message": "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more details.",
        "type": "invalid_request_error",
        "code": "tool_use_failed",
        "status_code": 400,
        "failed_generation": fault.failed_generation,
    }


class ScriptedError(ApiError):
    """An error response that a fault defines."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.status, "simulated failure", "simulated")
        self.headers = fault.headers
        self.scripted = fault.body


def make_json_response(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")
