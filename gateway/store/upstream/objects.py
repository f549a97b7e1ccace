"""Owners of the files and batches of the model's server."""

from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import text

from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject
from gateway.ports.upstream import PENDING_PREFIX, ObjectKind, RequestUsage, UpstreamObject, UpstreamObjects
from gateway.store.database import Database, DatabaseRow, decode_json, encode_jsonb
from gateway.store.upstream.ledger import insert_usage

_COLUMNS = "id, kind, owner, key, body, estimate, hold_id, settled_at IS NOT NULL"
_INSERT = """
INSERT INTO upstream_objects (id, kind, owner, key, body, estimate, hold_id)
VALUES (:id, :kind, :owner, :key, cast(:body AS jsonb), cast(:estimate AS jsonb), :hold_id)
ON CONFLICT (id) DO NOTHING RETURNING id"""
_KEEP_HOLD = "UPDATE request_holds SET expires_at = NULL WHERE id = :id"
_DELETE_HOLD = "DELETE FROM request_holds WHERE id = :id"
_GET = f"SELECT {_COLUMNS} FROM upstream_objects WHERE id = :id AND owner = :owner AND kind = :kind"  # noqa: S608
_UPDATE = """
UPDATE upstream_objects SET body = cast(:body AS jsonb), checked_at = now()
WHERE id = :id AND (settled_at IS NULL OR :is_settled)"""
_SETTLE = "UPDATE upstream_objects SET settled_at = now() WHERE id = :id AND settled_at IS NULL RETURNING id"
_CLAIM = f"""
UPDATE upstream_objects SET checked_at = now()
WHERE id IN (SELECT id FROM upstream_objects WHERE kind = 'batch' AND settled_at IS NULL
             AND checked_at < now() - make_interval(secs => :seconds)
             ORDER BY checked_at LIMIT :limit FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}"""  # noqa: S608
_DELETE = "DELETE FROM upstream_objects WHERE id = :id"
_DELETE_PENDING = f"DELETE FROM upstream_objects WHERE owner = :owner AND starts_with(id, '{PENDING_PREFIX}')"  # noqa: S608
_DELETE_OLD_PENDING = f"""
DELETE FROM upstream_objects WHERE owner = :owner AND kind = 'file' AND starts_with(id, '{PENDING_PREFIX}')
AND created_at < now() - interval '1 day'"""  # noqa: S608
_LIST = f"""
SELECT {_COLUMNS} FROM upstream_objects
WHERE owner = :owner AND kind = :kind AND NOT starts_with(id, '{PENDING_PREFIX}')
AND (cast(:purpose AS text) IS NULL OR body->>'purpose' = :purpose)
AND (cast(:after AS text) IS NULL OR (created_at, id) {{comparison}} (
    SELECT created_at, id FROM upstream_objects WHERE id = :after AND owner = :owner))
ORDER BY created_at {{order}}, id {{order}} LIMIT :limit"""  # noqa: S608


class UpstreamObjectStore(UpstreamObjects):
    """See `UpstreamObjects`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, *objects: UpstreamObject) -> None:
        """See `UpstreamObjects.add`."""
        async with self._database.session() as session:
            connection = await session.connection()
            await _insert_objects(connection, objects)

    async def confirm(self, pending: UpstreamObject, *objects: UpstreamObject) -> int:
        """See `UpstreamObjects.confirm`.

        Pending files of workers that were killed are deleted with the owner's next one: no id of theirs is known.
        """
        async with self._database.session() as session:
            connection = await session.connection()
            await connection.execute(text(_DELETE), {"id": pending.id})
            await connection.execute(text(_DELETE_OLD_PENDING), {"owner": pending.owner})
            return await _insert_objects(connection, objects)

    async def delete_pending(self, owner: str) -> None:
        """See `UpstreamObjects.delete_pending`."""
        await self._execute(_DELETE_PENDING, {"owner": owner})

    async def get(self, owner: str, kind: ObjectKind, object_id: str) -> UpstreamObject:
        """See `UpstreamObjects.get`."""
        rows = await self._database.fetch_rows(_GET, id=object_id, owner=owner, kind=kind)
        if not rows:
            raise NotFound(f"There is no {kind} {object_id[:80]!r}.")
        return _parse_row(rows[0])

    async def list_objects(
        self,
        owner: str,
        kind: ObjectKind,
        *,
        limit: int,
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> list[UpstreamObject]:
        """See `UpstreamObjects.list_objects`."""
        statement = _LIST.format(order=order.upper(), comparison="<" if order == "desc" else ">")
        values: dict[str, Any] = {"owner": owner, "kind": kind, "after": after, "purpose": purpose, "limit": limit}
        return [_parse_row(row) for row in await self._database.fetch_rows(statement, **values)]

    async def update(self, item: UpstreamObject) -> None:
        """See `UpstreamObjects.update`."""
        await self._execute(_UPDATE, {"id": item.id, "body": encode_jsonb(item.body), "is_settled": item.is_settled})

    async def settle(self, item: UpstreamObject, used: Sequence[RequestUsage]) -> None:
        """See `UpstreamObjects.settle`."""
        async with self._database.session() as session:
            connection = await session.connection()
            if (await connection.execute(text(_SETTLE), {"id": item.id})).first() is None:
                return  # another worker was faster
            if item.hold_id is not None:
                await connection.execute(text(_DELETE_HOLD), {"id": item.hold_id})
            await _insert_all(connection, used)

    async def claim_open_batches(self, *, limit: int, older_than_seconds: float) -> list[UpstreamObject]:
        """See `UpstreamObjects.claim_open_batches`."""
        rows = await self._database.fetch_rows(_CLAIM, limit=limit, seconds=older_than_seconds)
        return [_parse_row(row) for row in rows]

    async def delete(self, item: UpstreamObject) -> None:
        """See `UpstreamObjects.delete`."""
        await self._execute(_DELETE, {"id": item.id})

    async def delete_hold(self, hold_id: UUID) -> None:
        """See `UpstreamObjects.delete_hold`."""
        await self._execute(_DELETE_HOLD, {"id": hold_id})

    async def _execute(self, statement: str, values: dict[str, object]) -> None:
        async with self._database.session() as session:
            await (await session.connection()).execute(text(statement), values)


async def _insert_objects(connection: AsyncConnection, objects: Sequence[UpstreamObject]) -> int:
    """Insert objects that are not known; return their number."""
    inserted = 0
    for item in objects:
        if (await connection.execute(text(_INSERT), _list_values(item))).first() is None:
            continue
        inserted += 1
        if item.hold_id is not None and not item.is_pending:
            await connection.execute(text(_KEEP_HOLD), {"id": item.hold_id})
    return inserted


async def _insert_all(connection: AsyncConnection, used: Sequence[RequestUsage]) -> None:
    for each in used:
        await insert_usage(connection, each)


def _list_values(item: UpstreamObject) -> dict[str, object]:
    return {
        "id": item.id,
        "kind": item.kind,
        "owner": item.owner,
        "key": item.key,
        "body": encode_jsonb(item.body),
        "estimate": None if item.estimate is None else encode_jsonb(item.estimate),
        "hold_id": item.hold_id,
    }


def _parse_row(row: DatabaseRow) -> UpstreamObject:
    object_id, kind, owner, key, body, estimate, hold_id, is_settled = row
    return UpstreamObject(
        id=object_id,
        kind=kind,
        owner=owner,
        key=key,
        body=msgspec.convert(decode_json(body), JsonObject),
        estimate=msgspec.convert(decode_json(estimate), JsonObject | None),
        hold_id=hold_id,
        is_settled=is_settled,
    )
