"""Encrypted OAuth grants for MCP servers, and the sign-ins in progress."""

import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import delete, text, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.common.logging import get_logger
from gateway.domain.errors import NotFound
from gateway.domain.messages import AuthorizationRequest, Grant, JsonObject
from gateway.ports.tools import GrantStore, GrantTransaction
from gateway.store.audit import make_audit_entry
from gateway.store.database import Database, count_changed_rows
from gateway.store.encryption import Cipher
from gateway.store.models import OAuthGrant, OAuthSignIn

log = get_logger(__name__)

_SIGN_IN_LIFETIME = timedelta(days=7)
_TRANSACTION_SECONDS = 20.0
"""Time limit of a transaction, which may refresh tokens.

The authorization server has 15 seconds to answer, in which other transactions wait for the lock.
"""
_LOCK_STATEMENT = text(
    "SELECT set_config('lock_timeout', :timeout, true),"
    " set_config('idle_in_transaction_session_timeout', :timeout, true),"
    " pg_advisory_xact_lock(hashtextextended(:name, 0))"
)


class PostgresGrantTransaction(GrantTransaction):
    """See `GrantTransaction`."""

    def __init__(self, grant: Grant | None) -> None:
        self.grant = grant


class PostgresGrantStore(GrantStore):
    """See `GrantStore`."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    async def get_grant(self, server: str, owner: str, url: str) -> Grant | None:
        async with self._database.session() as session:
            return self._decrypt(await session.get(OAuthGrant, (server, owner, url)))

    @asynccontextmanager
    async def begin_transaction(self, server: str, owner: str, url: str) -> AsyncGenerator[PostgresGrantTransaction]:
        async with self._database.session(seconds=_TRANSACTION_SECONDS) as session:
            row = await self._lock_row(session, server, owner, url)
            before = self._decrypt(row)
            change = PostgresGrantTransaction(before)
            yield change
            if change.grant == before:
                return
            if change.grant is None:
                await session.delete(row)
            else:
                sealed = self._cipher.encrypt(msgspec.json.encode(change.grant))
                row = row or OAuthGrant(server=server, owner=owner, url=url, sealed=sealed)
                row.sealed, row.changed_at = sealed, datetime.now(UTC)
                session.add(row)

    async def delete_grant(self, server: str, owner: str, url: str, *, by: str) -> None:
        async with self._database.session() as session:
            row = await self._lock_row(session, server, owner, url)
            if row is not None:
                await session.delete(row)
                session.add(make_audit_entry(by, "login.forgotten", f"server {server}", {"owner": owner}))

    async def _lock_row(self, session: AsyncSession, server: str, owner: str, url: str) -> OAuthGrant | None:
        """Lock a grant for this transaction, and return its row.

        The lock also holds if the row does not exist.
        """
        connection = await session.connection()
        values = {"name": f"grant {server} {owner} {url}", "timeout": f"{_TRANSACTION_SECONDS:g}s"}
        await connection.execute(_LOCK_STATEMENT, values)
        return await session.get(OAuthGrant, (server, owner, url))

    def _decrypt(self, row: OAuthGrant | None) -> Grant | None:
        if row is None:
            return None
        plain = self._cipher.decrypt(row.sealed)
        if plain is None:
            log.warning("grant_decryption_failed", server=row.server)
            return None
        return msgspec.json.decode(plain, type=Grant)

    # --- sign-ins

    async def save_request(self, ticket: str, request: AuthorizationRequest) -> None:
        now = datetime.now(UTC)
        row = OAuthSignIn(
            ticket=_hash_secret(ticket), login=msgspec.to_builtins(request), expires_at=now + _SIGN_IN_LIFETIME
        )
        async with self._database.session() as session:
            await session.exec(delete(OAuthSignIn).where(col(OAuthSignIn.expires_at) < now))
            session.add(row)

    async def find_request(self, ticket: str) -> AuthorizationRequest | None:
        row = await self._get_valid_sign_in(ticket)
        return None if row is None or row.outcome == "" else msgspec.convert(row.login, AuthorizationRequest)

    async def expect_callback(self, ticket: str, state: str) -> None:
        values = {"state": _hash_secret(state), "callback": None, "outcome": None}
        async with self._database.session() as session:
            await session.exec(
                update(OAuthSignIn).where(col(OAuthSignIn.ticket) == _hash_secret(ticket)).values(values)
            )

    async def save_callback(self, ticket: str, state: str, answer: JsonObject) -> bool:
        is_waiting = (
            col(OAuthSignIn.ticket) == _hash_secret(ticket),
            col(OAuthSignIn.state) == _hash_secret(state),
            col(OAuthSignIn.callback).is_(None),
            col(OAuthSignIn.outcome).is_(None),
        )
        sealed = self._cipher.encrypt(msgspec.json.encode(answer))
        async with self._database.session() as session:
            return bool(
                await count_changed_rows(session, update(OAuthSignIn).where(*is_waiting).values(callback=sealed))
            )

    async def get_callback(self, ticket: str, state: str) -> JsonObject | None:
        row = await self._get_valid_sign_in(ticket)
        if row is None or row.state != _hash_secret(state):
            raise NotFound("A newer sign-in has replaced this one.", param="state")
        plain = self._cipher.decrypt(row.callback) if row.callback is not None else None
        return None if plain is None else msgspec.json.decode(plain)

    async def save_outcome(self, ticket: str, outcome: str) -> None:
        row = await self._get_valid_sign_in(ticket)
        if row is None:
            return
        request = msgspec.convert(row.login, AuthorizationRequest)
        detail = {"owner": request.owner, "problem": outcome or None}
        change = update(OAuthSignIn).where(col(OAuthSignIn.ticket) == _hash_secret(ticket))
        async with self._database.session() as session:
            await session.exec(change.values(outcome=outcome, state=None, callback=None))
            session.add(
                make_audit_entry(
                    request.by, "login.granted" if not outcome else "login.failed", f"server {request.server}", detail
                )
            )

    async def get_outcome(self, ticket: str) -> str | None:
        row = await self._get_valid_sign_in(ticket)
        return "the sign-in has expired" if row is None else row.outcome

    async def _get_valid_sign_in(self, ticket: str) -> OAuthSignIn | None:
        is_valid = (OAuthSignIn.ticket == _hash_secret(ticket), col(OAuthSignIn.expires_at) > datetime.now(UTC))
        async with self._database.session() as session:
            return (await session.exec(select(OAuthSignIn).where(*is_valid))).first()


def _hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
