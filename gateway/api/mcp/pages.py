"""Pages of the lists that hosts read at the MCP endpoint."""

import base64
from collections.abc import Callable, Sequence
from typing import TypeVar

import mcp.types as t
import msgspec
from mcp import MCPError

PAGE_SIZE = 500
T = TypeVar("T")
_Position = tuple[int, str]
"""Number of items on earlier pages, and name of the last."""


def cut_page(
    items: Sequence[T], params: t.PaginatedRequestParams | None, get_name: Callable[[T], str]
) -> tuple[Sequence[T], str | None]:
    """Return the requested page and the cursor of the next one.

    The cursor names the last item of a page, so that no item is skipped or repeated when the list changes before it.

    Raises:
        MCPError: the cursor is not one of this endpoint.
    """
    start = 0
    if params is not None and params.cursor is not None:
        count, name = _decode_cursor(params.cursor)
        is_unchanged = 0 < count <= len(items) and get_name(items[count - 1]) == name
        numbers = (number for number, item in enumerate(items, start=1) if get_name(item) == name)
        start = count if is_unchanged else next(numbers, count)
    page = items[start : start + PAGE_SIZE]
    end = start + len(page)
    return page, _encode_cursor((end, get_name(page[-1]))) if end < len(items) and page else None


def _encode_cursor(position: _Position) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode()


def _decode_cursor(cursor: str) -> _Position:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=_Position)
    except (ValueError, msgspec.MsgspecError):
        raise MCPError(t.INVALID_PARAMS, "The cursor is not valid: list again without one.") from None
