"""A2A 0.3 over JSON-RPC: the SDK converts requests and answers."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import msgspec
from a2a.compat.v0_3 import conversions
from a2a.compat.v0_3 import types as types_v03
from a2a.compat.v0_3.jsonrpc_adapter import JSONRPC03Adapter
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.types import a2a_pb2 as types
from fastapi import Response
from google.protobuf.json_format import ParseDict
from sse_starlette import EventSourceResponse
from starlette.responses import JSONResponse

from gateway.common.logging import get_logger
from gateway.domain.messages import JsonObject
from gateway.wire.a2a.frames import JsonRpcFrames

log = get_logger(__name__)
_INTERNAL_ERROR = -32_603
_INVALID_PARAMS = -32_602
_METHODS = frozenset(JSONRPC03Adapter.METHOD_TO_MODEL)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
_WAITING = (types_v03.TaskState.input_required, types_v03.TaskState.auth_required)


def add_legacy_fields(card: JsonObject) -> JsonObject:
    """Add what clients of protocol 0.3 read of a card."""
    return agent_card_to_dict(ParseDict(card, types.AgentCard()))


def is_legacy_method(method: object) -> bool:
    return method in _METHODS


class LegacyRpcFrames(JsonRpcFrames):
    """Frames of protocol 0.3, whose last one is marked as final."""

    def __init__(self, request_id: str | int | None) -> None:
        super().__init__(request_id)
        self._request_id = request_id

    def format_result(self, result: JsonObject) -> bytes:
        update = ParseDict(result, types.StreamResponse(), ignore_unknown_fields=True)
        response = conversions.to_compat_stream_response(update, self._request_id)
        event = response.result
        if isinstance(event, types_v03.TaskStatusUpdateEvent) and event.status.state in _WAITING:
            event.final = True
        return b"data: %s\n\n" % response.model_dump_json(by_alias=True, exclude_none=True).encode()


async def read_first_frame(response: EventSourceResponse) -> Response:
    """Run the SDK's stream up to its first frame.

    Return the frame as JSON: it is the error of a request that has no stream.
    """
    frames = cast(AsyncGenerator[JsonObject], response.body_iterator)  # pyright: ignore[reportUnknownMemberType]
    async with aclosing(frames):
        frame = await anext(frames)
    return Response(frame["data"], media_type="application/json")


def hide_conversion_error(response: Response) -> Response:
    """Replace the SDK's text about parameters that it cannot convert."""
    body: JsonObject = msgspec.json.decode(bytes(response.body))
    error: JsonObject = body.get("error") or {}
    if error.get("code") != _INTERNAL_ERROR:
        return response
    log.info("a2a_legacy_request_not_convertible", error=str(error.get("message"))[:500])
    message = "The parameters cannot be converted to protocol 1.0."
    return JSONResponse(body | {"error": {"code": _INVALID_PARAMS, "message": message}})
