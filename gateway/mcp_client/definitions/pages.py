"""Reads lists of servers page by page."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from mcp.types import PaginatedResult

from gateway.mcp_client.definitions.problems import DefinitionProblems
from gateway.ports.tools import DefinitionKind

_MAX_PAGES = 100
MAX_ITEMS = 1_000
"""Items of a kind that a server may offer."""


PageT = TypeVar("PageT", bound=PaginatedResult)
ItemT = TypeVar("ItemT")


async def read_list(
    fetch_page: Callable[[str | None], Awaitable[PageT]],
    get_items: Callable[[PageT], Iterable[tuple[str, ItemT]]],
    accepts: Callable[[ItemT], bool],
    kind: DefinitionKind,
    problems: DefinitionProblems,
) -> dict[str, ItemT]:
    """The accepted items of all pages by name, in the server's order.

    Of items with one name the first counts. At most 100 pages are read, and 1,000 items accepted; `problems` tells
    where a list has more. A cursor that is empty or was used before ends the list: the server would send the same
    pages for ever.
    """
    items: dict[str, ItemT] = {}
    cursor: str | None = None
    used_cursors: set[str] = set()
    for _ in range(_MAX_PAGES):
        page = await fetch_page(cursor)
        for name, item in get_items(page):
            if name in items:
                if items[name] != item:
                    problems.add(kind, name, "is listed more than once", left_out=True)
            elif len(items) >= MAX_ITEMS:
                problem = f"the list has more than {MAX_ITEMS:,} items: the others are left out"
                problems.add(kind, "", problem, left_out=True)
                return items
            elif accepts(item):
                items[name] = item
        cursor = page.next_cursor
        if not cursor:
            return items
        if cursor in used_cursors:
            problems.add(kind, "", "nextCursor: repeats, which ends the list", left_out=False)
            return items
        used_cursors.add(cursor)
    problems.add(kind, "", f"the list has more than {_MAX_PAGES} pages: the others are left out", left_out=True)
    return items
