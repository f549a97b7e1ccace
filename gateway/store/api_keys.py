"""API keys: created, found by their hash, revoked."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlalchemy import update
from sqlmodel import col, func, or_, select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import Conflict, NotAuthenticated, NotFound
from gateway.domain.messages import Budget, CodeMode, GatewayTools, JsonObject, KeyLimits, Principal, UserRole
from gateway.store.audit import make_audit_entry
from gateway.store.bus import CHANNEL
from gateway.store.database import Database, count_changed_rows
from gateway.store.lists.byte_pages import build_page_query
from gateway.store.models import ApiKey

KEY_PREFIX = "agw_"
_PAGE = build_page_query(
    "api_keys",
    listed="SELECT ctid FROM api_keys WHERE (cast(:owner AS text) IS NULL OR owner = :owner) AND id < :before"
    " ORDER BY id DESC",
    size="octet_length(to_jsonb(t)::text)",
    columns="t.id",
)
_IS_ACTIVE = (
    col(ApiKey.revoked_at).is_(None),
    or_(col(ApiKey.expires_at).is_(None), col(ApiKey.expires_at) > func.now()),
)
_TOUCH_INTERVAL = timedelta(minutes=1)
_CHANGE_MESSAGE = msgspec.json.encode(BusMessage(BusKind.KEYS_CHANGED, BusMessage.NO_TURN)).decode()


class NewKey(msgspec.Struct, frozen=True):
    """Properties of a key to create.

    A role of None is admin for the first stored key, which enables authentication, and user for others. A list of None
    allows everything. A key with an `expires_at` of None does not expire.
    """

    owner: str
    name: str = ""
    role: UserRole | None = "user"
    scopes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    servers: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    budget: Budget | None = None
    limits: KeyLimits | None = None
    gateway_tools: GatewayTools | None = None
    code: CodeMode | None = None
    toolset: str | None = None
    expires_at: datetime | None = None


class KeyStore:
    """Repository of `api_keys`.

    Each change notifies all workers in its transaction. See docs/adr/0020.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_key(
        self, new: NewKey, *, by: str, made_with: str | None = None, action: str = "key.create"
    ) -> tuple[ApiKey, str]:
        """Create a key; return its row and its secret.

        The secret is not stored. `made_with` names the credential of the creator, and `action` the entry of the audit
        log.

        Raises:
            NotAuthenticated: the creator's key has been revoked.
        """
        async with self._database.session() as session:
            if new.role is None:
                has_keys = (await session.exec(select(ApiKey.id).limit(1))).first() is not None
                new = msgspec.structs.replace(new, role="user" if has_keys else "admin")
            row, secret = _build_key(new, by, made_with)
            await self._add_key(session, row, new, action)
        return row, secret

    async def rotate_key(
        self, key: ApiKey, overlap: timedelta, *, by: str, made_with: str | None = None
    ) -> tuple[ApiKey, str]:
        """Create a successor; return its row and its secret.

        It has the same properties. The old key expires after `overlap`, if not before.

        Raises:
            NotAuthenticated: the creator's key has been revoked.
            Conflict: the old key has been revoked or has expired.
        """
        new = _get_properties(key)
        row, secret = _build_key(new, by, made_with)
        end = func.least(ApiKey.expires_at, func.now() + overlap)  # ignores null
        retirement = update(ApiKey).where(col(ApiKey.id) == key.id, *_IS_ACTIVE).values(expires_at=end)
        async with self._database.session() as session:
            if not await count_changed_rows(session, retirement):
                raise Conflict("This key has been revoked or has expired.")
            await self._add_key(session, row, new)
            detail = {"owner": key.owner, "successor": row.prefix, "made_with": made_with, "overlap": str(overlap)}
            session.add(make_audit_entry(by, "key.rotate", f"key {key.prefix}", detail))
        return row, secret

    async def change_key(self, key: ApiKey, changes: JsonObject, *, by: str) -> ApiKey:
        """Change properties of a key, and return its row.

        Raises:
            Conflict: the key has been revoked or has expired.
        """
        if not changes:
            return key
        change = update(ApiKey).where(col(ApiKey.id) == key.id, *_IS_ACTIVE).values(**changes)
        async with self._database.session() as session:
            if not await count_changed_rows(session, change):
                raise Conflict("This key has been revoked or has expired.")
            detail = {"owner": key.owner} | msgspec.to_builtins(changes)
            session.add(make_audit_entry(by, "key.change", f"key {key.prefix}", detail))
            await notify_key_change(session)
            return (await session.exec(select(ApiKey).where(ApiKey.id == key.id))).one()

    async def _add_key(self, session: AsyncSession, row: ApiKey, new: NewKey, action: str = "key.create") -> None:
        """Add a key.

        The maker's key is locked, so that its revocation finds this key.

        Raises:
            NotAuthenticated: the maker's key has been revoked.
        """
        if row.made_with is not None and row.made_with.startswith(KEY_PREFIX):
            is_active = (ApiKey.prefix == row.made_with, col(ApiKey.revoked_at).is_(None))
            lock = select(ApiKey.id).where(*is_active).with_for_update(read=True)
            if (await session.exec(lock)).first() is None:
                raise NotAuthenticated("This API key has been revoked.")
        session.add(row)
        detail = msgspec.to_builtins(new) | {"prefix": row.prefix, "made_with": row.made_with}
        session.add(make_audit_entry(row.created_by, action, f"key {row.prefix}", detail))
        await notify_key_change(session)

    async def iterate_keys(self, owner: str | None = None) -> AsyncIterator[ApiKey]:
        """Read the keys in pages, newest first; with `owner`, only the owner's."""
        before = UUID(int=2**128 - 1)
        while rows := await self._database.fetch_rows(_PAGE, owner=owner, before=before):
            query = select(ApiKey).where(col(ApiKey.id).in_([row[1] for row in rows])).order_by(col(ApiKey.id).desc())
            async with self._database.session() as session:
                keys = (await session.exec(query)).all()
            for key in keys:
                yield key
            before = rows[-1][1]

    async def get_key(self, key_id: UUID, owner: str | None = None) -> ApiKey:
        """Return a key.

        Raises:
            NotFound: the key does not exist, or belongs to another owner.
        """
        query = select(ApiKey).where(ApiKey.id == key_id)
        if owner is not None:
            query = query.where(ApiKey.owner == owner)
        async with self._database.session() as session:
            row = (await session.exec(query)).first()
        if row is None:
            raise NotFound(f"There is no key {str(key_id)!r}.")
        return row

    async def get_by_prefix(self, prefix: str) -> ApiKey:
        """Return the key with this prefix.

        Raises:
            NotFound: the key does not exist.
        """
        async with self._database.session() as session:
            row = (await session.exec(select(ApiKey).where(ApiKey.prefix == prefix))).first()
        if row is None:
            raise NotFound(f"There is no key {prefix[:20]!r}.")
        return row

    async def revoke_key(self, key: ApiKey, *, by: str) -> None:
        """Revoke a key, and all keys made with it.

        Keys that are already revoked stay as they are.
        """
        async with self._database.session() as session:
            is_active = col(ApiKey.revoked_at).is_(None)
            revocation = update(ApiKey).where(col(ApiKey.id) == key.id, is_active).values(revoked_at=func.now())
            changed = bool(await count_changed_rows(session, revocation))
            if changed:
                session.add(make_audit_entry(by, "key.revoke", f"key {key.prefix}", {"owner": key.owner}))
            changed = await revoke_descendants(session, [key.prefix], by=by) or changed
            if changed:
                await notify_key_change(session)

    # --- authentication

    async def has_keys(self) -> bool:
        """Return whether any key exists.

        Revoked ones count: revoking the last key must not turn authentication off.
        """
        async with self._database.session() as session:
            return (await session.exec(select(ApiKey.id).limit(1))).first() is not None

    async def find_by_hash(self, hash_: str) -> ApiKey | None:
        async with self._database.session() as session:
            return (await session.exec(select(ApiKey).where(ApiKey.hash == hash_))).first()

    async def list_revoked(self, prefixes: list[str]) -> list[str]:
        """Return the prefixes whose keys are revoked or expired."""
        is_inactive = or_(col(ApiKey.revoked_at).is_not(None), col(ApiKey.expires_at) <= func.now())
        async with self._database.session() as session:
            return list(
                (await session.exec(select(ApiKey.prefix).where(col(ApiKey.prefix).in_(prefixes), is_inactive))).all()
            )

    async def record_use(self, key_id: UUID) -> None:
        """Record the use of a key.

        Writes at most once a minute for all workers together.
        """
        is_outdated = or_(col(ApiKey.last_used_at).is_(None), col(ApiKey.last_used_at) < func.now() - _TOUCH_INTERVAL)
        async with self._database.session() as session:
            await session.exec(
                update(ApiKey).where(col(ApiKey.id) == key_id, is_outdated).values(last_used_at=func.now())
            )


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def principal_from_key(key: ApiKey) -> Principal:
    """Build the principal that a key authenticates."""
    return msgspec.convert(
        {
            "user": key.owner,
            "role": key.role,
            "key": key.prefix,
            "scopes": key.scopes,
            "models": key.models,
            "servers": key.servers,
            "tools": key.tools,
            "budget": key.budget,
            "limits": key.limits,
            "gateway_tools": key.gateway_tools,
            "code": key.code,
            "toolset": key.toolset,
        },
        Principal,
    )


def _build_key(new: NewKey, by: str, made_with: str | None) -> tuple[ApiKey, str]:
    """Build a key's row, and its secret."""
    prefix = KEY_PREFIX + secrets.token_hex(4)
    secret = f"{prefix}_{secrets.token_urlsafe(32)}"
    row = ApiKey(
        id=UUID(int=uuids.uuid7().int),
        hash=hash_secret(secret),
        prefix=prefix,
        name=new.name,
        owner=new.owner,
        role=new.role or "user",
        scopes=_to_list(new.scopes),
        models=_to_list(new.models),
        servers=_to_list(new.servers),
        tools=_to_list(new.tools),
        budget=None if new.budget is None else msgspec.to_builtins(new.budget),
        limits=None if new.limits is None else msgspec.to_builtins(new.limits),
        gateway_tools=new.gateway_tools,
        code=new.code,
        toolset=new.toolset,
        created_by=by,
        made_with=made_with,
        created_at=datetime.now(UTC),
        expires_at=new.expires_at,
    )
    return row, secret


def _get_properties(key: ApiKey) -> NewKey:
    """The properties of a key, for its successor."""
    fields = {name: getattr(key, name) for name in NewKey.__struct_fields__ if name != "expires_at"}
    return msgspec.structs.replace(msgspec.convert(fields, NewKey), expires_at=key.expires_at)


def _to_list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


async def revoke_descendants(session: AsyncSession, makers: list[str], *, by: str) -> bool:
    """Revoke the keys made with revoked keys, in any generation.

    `makers` are prefixes of the revoked keys. Returns whether there was any key to revoke. One statement per
    generation: each sees keys that were committed before it locked their makers.
    """
    has_revoked = False
    while makers:
        descendants = update(ApiKey).where(col(ApiKey.made_with).in_(makers), col(ApiKey.revoked_at).is_(None))
        columns = (col(ApiKey.prefix), col(ApiKey.owner), col(ApiKey.made_with))
        revoking = descendants.values(revoked_at=func.now()).returning(*columns)
        rows = (await (await session.connection()).execute(revoking)).all()
        for prefix, owner, maker in rows:
            detail = {"owner": owner, "made_with_revoked": maker}
            session.add(make_audit_entry(by, "key.revoke", f"key {prefix}", detail))
        makers = [row[0] for row in rows]
        has_revoked = has_revoked or bool(rows)
    return has_revoked


async def notify_key_change(session: AsyncSession) -> None:
    """Notify all workers at the commit."""
    notify = text("SELECT pg_notify(:channel, :payload)")
    await (await session.connection()).execute(notify, {"channel": CHANNEL, "payload": _CHANGE_MESSAGE})
