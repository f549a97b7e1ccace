"""Text that is none, turned away at the door."""

import json
import re

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from gateway.domain.messages import JSON_DECODE_ERRORS

# Half a character: as an escape, or as the bytes that no UTF-8 has. A NUL is in all UTF-16 and UTF-32, which Python
# reads, too.
_SUSPECT = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\x00")


def reject_lone_surrogates(receive: Receive) -> Receive:
    """A body with half of a character (`"\\ud800"`) is refused as no JSON, when all is there: Python takes it, but
    neither Postgres nor an MCP server does, nor who must write it as UTF-8."""
    chunks: list[bytes] = []

    async def received() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(chunks)
                chunks.clear()
                if _SUSPECT.search(body):
                    _check_unicode(body)
        return message

    return received


def _check_unicode(body: bytes) -> None:
    try:
        msgspec.json.decode(body.decode(json.detect_encoding(body)))
    except JSON_DECODE_ERRORS:
        # Let through by FastAPI while it reads a body; any other error would be changed.
        raise HTTPException(400, "The body is not valid JSON.") from None
