"""The stream of OpenAI's Responses API."""

from collections.abc import AsyncGenerator

import msgspec

from gateway.domain.messages import JsonObject
from gateway.ports.listener import EventListener
from gateway.wire.openai_response_items import ResponseWriter

_encode = msgspec.json.Encoder().encode


def format_sse(event: JsonObject) -> bytes:
    """Format an event of the Responses API as SSE."""
    return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), _encode(event))


async def stream_response(
    listener: EventListener,
    *,
    writer: ResponseWriter,
    after: int = -1,
) -> AsyncGenerator[bytes]:
    """Stream the response's events after number `after`, until it ends.

    `listener` must start at the turn's first event.
    """

    def format_frames(events: list[JsonObject]) -> bytes:
        return b"".join(format_sse(event) for event in events if event["sequence_number"] > after)

    async for batch in listener:
        yield format_frames([event for entry in batch for event in writer.write_event(entry.event)])
        if writer.has_ended:
            return
    reason = listener.close_reason or "server_stopping"
    if reason == "input_required":
        yield format_frames(writer.end_for_input())
    else:
        yield format_frames(writer.write_error(reason, f"The stream ended before the answer: {reason}."))
