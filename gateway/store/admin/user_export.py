"""Tables with data of users, for the export of a user's data."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from gateway.store.database import Database
from gateway.store.lists.byte_pages import build_page_query

_OF_TURN = " JOIN turns ON turns.id = t.turn_id"


class _Export(msgspec.Struct, frozen=True):
    """Rows of a table that are one user's.

    `keys` are their unique columns with types; `without` is left out.
    """

    table: str
    keys: dict[str, str]
    owner: str = "owner"
    join: str = ""
    row: str = "to_jsonb(t)"
    without: tuple[str, ...] = ()

    def build_query(self, *, is_first: bool) -> str:
        """Build the query of a page.

        It starts after the key in the parameters.
        """
        columns = ", ".join(f"t.{key}" for key in self.keys)
        start = ", ".join(f"cast(cast(:{key} AS text) AS {kind})" for key, kind in self.keys.items())
        condition = "" if is_first else f"AND ({columns}) > ({start})"
        listed = (
            f"SELECT t.ctid FROM {self.table} AS t{self.join} WHERE {self.owner} = :user {condition}"  # noqa: S608
            f" ORDER BY {columns}"
        )
        removed = "".join(f" - '{column}'" for column in self.without)
        row = f"({self.row}{removed})::text"
        key = ", ".join(f"t.{key}::text" for key in self.keys)
        return build_page_query(self.table, listed=listed, size=f"octet_length({row})", columns=f"{row}, {key}")


EXPORTS = (
    _Export("conversations", {"id": "uuid"}),
    _Export("turns", {"id": "uuid"}, without=("search", "has_terms", "request_hash")),
    _Export("turn_events", {"turn_id": "uuid", "first_seq": "bigint"}, join=_OF_TURN),
    _Export("tool_calls", {"turn_id": "uuid", "call_id": "text"}, join=_OF_TURN),
    _Export("turn_inputs", {"id": "uuid"}, join=_OF_TURN),
    _Export("tool_tasks", {"id": "uuid"}, join=_OF_TURN),
    _Export("webhook_messages", {"id": "uuid"}),
    _Export("push_configs", {"turn_id": "uuid", "id": "text"}, without=("sealed",)),
    _Export("turn_feedback", {"turn_id": "uuid"}),
    _Export("turn_usage", {"turn_id": "uuid"}),
    _Export("budget_holds", {"turn_id": "uuid"}),
    _Export("request_holds", {"id": "uuid"}),
    _Export("upstream_objects", {"id": "text"}),
    _Export("cached_responses", {"key": "bytea"}, without=("key",)),
    _Export("api_keys", {"id": "uuid"}, without=("hash",)),
    _Export("oauth_grants", {"server": "text", "url": "text"}, without=("sealed",)),
    _Export("oauth_logins", {"ticket": "text"}, owner="login->>'owner'", row="login", without=("challenge",)),
    _Export("audit_log", {"id": "uuid"}, owner="actor"),
    _Export("mcp_servers", {"name": "text"}, owner="changed_by", without=("config",)),
    _Export("toolsets", {"name": "text"}, owner="changed_by"),
    _Export("tools.tasks", {"id": "integer"}, owner="user_id"),
    _Export("tools.task_calls", {"key": "text"}, owner="user_id", without=("fingerprint",)),
    _Export("tools.task_counters", {"user_id": "text"}, owner="user_id"),
    _Export("tools.http_tools", {"name": "text"}, owner="updated_by", without=("draft", "published")),
    _Export("tools.http_tool_secrets", {"origin": "text", "name": "text"}, owner="updated_by", without=("value",)),
)
"""Tables with data of users.

Some only name who changed a row. Secrets and hashes are left out.
"""


async def export_rows(database: Database, export: _Export, user: str) -> AsyncGenerator[str]:
    """Read a user's rows of a table as JSON, in bounded pages."""
    key: Sequence[str] = ()
    while True:
        values: dict[str, Any] = dict(zip(export.keys, key, strict=False))
        rows = await database.fetch_rows(export.build_query(is_first=not key), user=user, **values)
        if not rows:
            return
        key = rows[-1][2:]
        for row in rows:
            yield row[1]
