"""Pages of rows that end at a number of bytes."""

from typing import Literal

from gateway.common.pages import MAX_PAGE_BYTES

MAX_PAGE_ROWS = 100
# PostgreSQL measures one row after the other, up to the maximum, so a page costs no more than its own rows. OFFSET 0
# keeps the planner from a join that reads the whole table.
_PAGE = """
WITH RECURSIVE listed AS MATERIALIZED (
    SELECT array_agg(tid) AS tids FROM ({listed} LIMIT {limit}) AS candidates (tid)
), page AS (
    SELECT 0 AS n, 0::bigint AS bytes
    UNION ALL
    SELECT n + 1, bytes + coalesce((SELECT {size} FROM {table} AS t WHERE t.ctid = tids[n + 1]), 0)
    FROM page, listed WHERE bytes < {max_bytes} AND n < cardinality(tids)
)
SELECT cardinality(tids), item.*
FROM page CROSS JOIN listed
CROSS JOIN LATERAL (SELECT {columns} FROM {table} AS t WHERE t.ctid = tids[n] OFFSET 0) AS item
ORDER BY n
"""


def build_page_query(
    table: str, *, listed: str, size: str, columns: str, limit: int | Literal[":limit"] = MAX_PAGE_ROWS
) -> str:
    """Build the query of a page.

    The page has at least one row if any is listed.
    `listed` selects the physical places (ctid) of the next rows in order. `size` and `columns` are expressions of a row
    with the alias t. The first column of the result is the number of listed rows: if it has fewer, the page was cut by
    its bytes.
    """
    return _PAGE.format(table=table, listed=listed, size=size, columns=columns, limit=limit, max_bytes=MAX_PAGE_BYTES)
