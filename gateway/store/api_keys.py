"""Keys for the API as they are kept: made, found by their hash, revoked."""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlalchemy import update
from sqlmodel import col, func, or_, select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.domain.errors import NotFound
from gateway.domain.messages import Budget, BusMessage, KeyLimits, Principal, UserRole
from gateway.store.audit import make_audit_entry
from gateway.store.bus import CHANNEL
from gateway.store.database import Database, count_changed_rows
from gateway.store.models import ApiKey

KEY_PREFIX = "agw_"
_TOUCH_INTERVAL = timedelta(minutes=1)
_CHANGED = msgspec.json.encode(BusMessage("keys", BusMessage.NO_TURN)).decode()


class NewKey(msgspec.Struct, frozen=True):
    """What a key is to be. None in a list's place allows everything; `expires_at` None: never."""

    owner: str
    name: str = ""
    role: UserRole = "user"
    scopes: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    servers: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    budget: Budget | None = None
    limits: KeyLimits | None = None
    expires_at: datetime | None = None


class KeyStore:
    """Rows of `api_keys`. What changes them tells every worker, in the same transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_key(self, new: NewKey, *, by: str) -> tuple[ApiKey, str]:
        """The key's row, and its secret, which is kept nowhere."""
        prefix = KEY_PREFIX + secrets.token_hex(4)
        secret = f"{prefix}_{secrets.token_urlsafe(32)}"
        row = ApiKey(
            id=UUID(int=uuids.uuid7().int),
            hash=hash_secret(secret),
            prefix=prefix,
            name=new.name,
            owner=new.owner,
            role=new.role,
            scopes=_list(new.scopes),
            models=_list(new.models),
            servers=_list(new.servers),
            tools=_list(new.tools),
            budget=None if new.budget is None else msgspec.to_builtins(new.budget),
            limits=None if new.limits is None else msgspec.to_builtins(new.limits),
            created_by=by,
            created_at=datetime.now(UTC),
            expires_at=new.expires_at,
        )
        detail = msgspec.to_builtins(new) | {"prefix": prefix}
        async with self._database.session() as session:
            session.add(row)
            session.add(make_audit_entry(by, "key.create", f"key {prefix}", detail))
            await _notify_change(session)
        return row, secret

    async def list_keys(self, owner: str | None = None) -> list[ApiKey]:
        """The newest first; with `owner`, theirs alone."""
        query = select(ApiKey).order_by(col(ApiKey.id).desc())
        if owner is not None:
            query = query.where(ApiKey.owner == owner)
        async with self._database.session() as session:
            return list((await session.exec(query)).all())

    async def get_key(self, key_id: UUID, owner: str | None = None) -> ApiKey:
        """Raises:
        NotFound: there is no such key, or it is not the owner's.
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
        """Raises:
        NotFound: there is no such key.
        """
        async with self._database.session() as session:
            row = (await session.exec(select(ApiKey).where(ApiKey.prefix == prefix))).first()
        if row is None:
            raise NotFound(f"There is no key {prefix[:20]!r}.")
        return row

    async def revoke_key(self, key: ApiKey, *, by: str) -> None:
        """From now on it opens nothing; one that is revoked already stays as it is."""
        mine = (col(ApiKey.id) == key.id, col(ApiKey.revoked_at).is_(None))
        async with self._database.session() as session:
            revocation = update(ApiKey).where(*mine).values(revoked_at=func.now())
            if await count_changed_rows(session, revocation):
                session.add(make_audit_entry(by, "key.revoke", f"key {key.prefix}", {"owner": key.owner}))
                await _notify_change(session)

    # --- for who asks for one

    async def has_keys(self) -> bool:
        """Whether there is a key at all. One that is revoked counts: to revoke the last opens nothing."""
        async with self._database.session() as session:
            return (await session.exec(select(ApiKey.id).limit(1))).first() is not None

    async def find_by_hash(self, hash_: str) -> ApiKey | None:
        async with self._database.session() as session:
            return (await session.exec(select(ApiKey).where(ApiKey.hash == hash_))).first()

    async def revoked_among(self, prefixes: list[str]) -> list[str]:
        """Those of them that open nothing any more."""
        over = or_(col(ApiKey.revoked_at).is_not(None), col(ApiKey.expires_at) <= func.now())
        async with self._database.session() as session:
            return list((await session.exec(select(ApiKey.prefix).where(col(ApiKey.prefix).in_(prefixes), over))).all())

    async def record_use(self, key_id: UUID) -> None:
        """Note that it was used; at most once a minute, however many workers say so."""
        old = or_(col(ApiKey.last_used_at).is_(None), col(ApiKey.last_used_at) < func.now() - _TOUCH_INTERVAL)
        async with self._database.session() as session:
            await session.exec(update(ApiKey).where(col(ApiKey.id) == key_id, old).values(last_used_at=func.now()))


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def principal_from_key(key: ApiKey) -> Principal:
    """Whom a key makes of its bearer."""
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
        },
        Principal,
    )


def _list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


async def _notify_change(session: AsyncSession) -> None:
    notify = text("SELECT pg_notify(:channel, :payload)")
    await (await session.connection()).execute(notify, {"channel": CHANNEL, "payload": _CHANGED})
