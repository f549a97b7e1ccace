"""Frames of A2A's streams, for JSON-RPC and for REST."""

from abc import ABC, abstractmethod

import msgspec

from gateway.domain.messages import JsonObject

_encode = msgspec.json.Encoder().encode
_INTERNAL_ERROR = -32_603


class FrameFormat(ABC):
    """Formats the results of a stream as SSE."""

    @abstractmethod
    def format_result(self, result: JsonObject) -> bytes: ...

    @abstractmethod
    def format_break(self, reason: str) -> bytes:
        """Format the error of a stream that ends before its task."""


class RestFrames(FrameFormat):
    """Frames of REST: the results themselves."""

    def format_result(self, result: JsonObject) -> bytes:
        return b"data: %s\n\n" % _encode(result)

    def format_break(self, reason: str) -> bytes:
        error = {"code": 503, "status": "UNAVAILABLE", "message": _describe_break(reason)}
        return b"event: error\ndata: %s\n\n" % _encode({"error": error})


class JsonRpcFrames(FrameFormat):
    """Frames of JSON-RPC: responses with the id of the request."""

    def __init__(self, request_id: str | int | None) -> None:
        self._head: JsonObject = {"jsonrpc": "2.0", "id": request_id}

    def format_result(self, result: JsonObject) -> bytes:
        return b"data: %s\n\n" % _encode(self._head | {"result": result})

    def format_break(self, reason: str) -> bytes:
        error = {"code": _INTERNAL_ERROR, "message": _describe_break(reason)}
        return b"event: error\ndata: %s\n\n" % _encode(self._head | {"error": error})


def _describe_break(reason: str) -> str:
    return f"The stream ended before the task: {reason}. Subscribe to the task again."
