"""A guard against messages that no page's script sends."""

import json
import re
from collections.abc import Callable
from inspect import isawaitable
from typing import Any, cast

import structlog
from nicegui import core
from starlette.types import Message, Receive

log = structlog.stdlib.get_logger(__name__)

NAMES = ("handshake", "event", "javascript_response", "ack", "log")
_PACKETS = frozenset({"1", "2", "3", "2probe", "3probe", "5", "40", "41"})
"""Packets of Engine.IO and Socket.IO that open, keep and close a connection."""
_EVENT = re.compile(r"42\d{0,9}(\[.*)", re.DOTALL)
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


def check_messages(receive: Receive) -> Receive:
    """Wrap `receive`: at a message that no page sends, the connection ends.

    NiceGUI and its libraries read packets unchecked, so each would leave a traceback in the log.
    """

    async def receive_checked() -> Message:
        message = await receive()
        if message["type"] == "websocket.receive" and not is_message_of_a_page(message.get("text")):
            log.info("message_refused", message="unknown")
            return {"type": "websocket.disconnect", "code": 1008}
        return message

    return receive_checked


def is_message_of_a_page(text: str | None) -> bool:
    """Return whether a page's script sends such texts; None stands for bytes."""
    if text is None or text in _PACKETS:
        return text is not None
    if (event := _EVENT.fullmatch(text)) is None:
        return False
    try:
        content: object = json.loads(event[1])
    except (ValueError, RecursionError):
        return False
    match cast("list[object]", content):
        case [str(name), {"client_id": str()}]:
            return name in NAMES
        case _:
            return False


def guard_messages() -> None:
    """Log messages with wrong fields in one line.

    NiceGUI handles the errors of pages itself.
    """
    handlers = cast("dict[str, Callable[..., Any]]", core.sio.handlers["/"])  # pyright: ignore[reportUnknownMemberType]
    for name in NAMES:
        core.sio.on(name, _guard(name, handlers[name]))  # pyright: ignore[reportUnknownMemberType]


def _guard(name: str, handle: Callable[..., Any]) -> Callable[..., Any]:
    async def handle_guarded(*arguments: object) -> object:
        try:
            result = handle(*arguments)
            return await result if isawaitable(result) else result
        except _MALFORMED as error:
            log.info("message_refused", message=name, error=type(error).__name__)
            return False

    return handle_guarded
