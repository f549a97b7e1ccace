"""API keys: created, found by their hash, revoked."""

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlalchemy import update
from sqlmodel import col, func, or_, select, text
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.errors import NotFound
from gateway.domain.messages import Budget, KeyLimits, Principal, UserRole
from gateway.store.audit import make_audit_entry
from gateway.store.bus import CHANNEL
from gateway.store.database import Database, count_changed_rows
from gateway.store.models import ApiKey

KEY_PREFIX = "agw_"
_TOUCH_INTERVAL = timedelta(minutes=1)
_CHANGE_MESSAGE = msgspec.json.encode(BusMessage(BusKind.KEYS_CHANGED, BusMessage.NO_TURN)).decode()


class NewKey(msgspec.Struct, frozen=True):
    """Properties of a key to create.

    A list of None allows everything. A key with an `expires_at` of None does not expire.
    """

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
    """Repository of `api_keys`.

    Each change notifies all workers in its transaction. See docs/adr/0020.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_key(self, new: NewKey, *, by: str) -> tuple[ApiKey, str]:
        """Create a key; return its row and its secret.

        The secret is not stored.
        """
        prefix = KEY_PREFIX + secrets.token_hex(4)
        secret = f"{prefix}_{secrets.token_urlsafe(32)}"
        row = ApiKey(
            id=UUID(int=uuids.uuid7().int),
            hash=hash_secret(secret),
            prefix=prefix,
            name=new.name,
            owner=new.owner,
            role=new.role,
            scopes=_to_list(new.scopes),
            models=_to_list(new.models),
            servers=_to_list(new.servers),
            tools=_to_list(new.tools),
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
        """List the keys, newest first; with `owner`, only the owner's."""
        query = select(ApiKey).order_by(col(ApiKey.id).desc())
        if owner is not None:
            query = query.where(ApiKey.owner == owner)
        async with self._database.session() as session:
            return list((await session.exec(query)).all())

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
        """Revoke a key.

        A key that is already revoked stays as it is.
        """
        active_key = (col(ApiKey.id) == key.id, col(ApiKey.revoked_at).is_(None))
        async with self._database.session() as session:
            revocation = update(ApiKey).where(*active_key).values(revoked_at=func.now())
            if await count_changed_rows(session, revocation):
                session.add(make_audit_entry(by, "key.revoke", f"key {key.prefix}", {"owner": key.owner}))
                await _notify_change(session)

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
        },
        Principal,
    )


def _to_list(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


async def _notify_change(session: AsyncSession) -> None:
    notify = text("SELECT pg_notify(:channel, :payload)")
    await (await session.connection()).execute(notify, {"channel": CHANNEL, "payload": _CHANGE_MESSAGE})
