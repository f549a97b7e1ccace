"""Reject request bodies that contain lone surrogates."""

import json
import re

import msgspec
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from gateway.domain.messages import JSON_DECODE_ERRORS

# A surrogate as an escape or as bytes that are not valid UTF-8; or a NUL, which every UTF-16 and UTF-32 text contains.
_SURROGATE_OR_NUL = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\x00")


def reject_lone_surrogates(receive: Receive) -> Receive:
    """Reject a body with a lone surrogate (`"\\ud800"`) as invalid JSON.

    Python decodes such a body, but Postgres, MCP servers and UTF-8 encoders reject it.

    Raises:
        HTTPException: 400, when the last part of the body has arrived.
    """
    chunks: list[bytes] = []

    async def receive_checked() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            chunks.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(chunks)
                chunks.clear()
                if _SURROGATE_OR_NUL.search(body):
                    _check_unicode(body)
        return message

    return receive_checked


def _check_unicode(body: bytes) -> None:
    try:
        msgspec.json.decode(body.decode(json.detect_encoding(body)))
    except JSON_DECODE_ERRORS:
        # An HTTPException: FastAPI changes any other error that is raised while it reads a body.
        raise HTTPException(400, "The body is not valid JSON.") from None
