"""Encrypted OAuth grants for MCP servers, and the sign-ins in progress."""

import hashlib
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import ColumnElement, delete, text, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.common.logging import get_logger
from gateway.domain.errors import NotFound
from gateway.domain.grants import AuthorizationRequest, Grant
from gateway.domain.messages import JsonObject
from gateway.ports.grants import GrantStore, GrantTransaction, RefreshClaim
from gateway.store.audit import make_audit_entry
from gateway.store.database import Database, count_changed_rows
from gateway.store.encryption import Cipher
from gateway.store.models import OAuthGrant, OAuthSignIn

log = get_logger(__name__)

_SIGN_IN_LIFETIME = timedelta(days=7)
_LOCK_STATEMENT = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
# Release 0.1.0 holds this lock while it refreshes a grant.
_CLAIM_STATEMENT = text(
    "UPDATE oauth_grants SET refreshing_until = now() + CAST(:duration AS interval)"
    " WHERE server = :server AND owner = :owner AND url = :url"
    " AND (refreshing_until IS NULL OR refreshing_until < now())"
    " AND pg_try_advisory_xact_lock(hashtextextended(:name, 0)) RETURNING sealed"
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
            row = await session.get(OAuthGrant, (server, owner, url))
        return row and self._decrypt(server, row.sealed)

    async def list_grants(self, owners: Collection[str]) -> dict[tuple[str, str, str], Grant]:
        async with self._database.session() as session:
            rows = (await session.exec(select(OAuthGrant).where(col(OAuthGrant.owner).in_(owners)))).all()
        grants = {(row.server, row.owner, row.url): self._decrypt(row.server, row.sealed) for row in rows}
        return {key: grant for key, grant in grants.items() if grant is not None}

    @asynccontextmanager
    async def begin_transaction(self, server: str, owner: str, url: str) -> AsyncGenerator[PostgresGrantTransaction]:
        async with self._database.session() as session:
            row = await self._lock_row(session, server, owner, url)
            before = row and self._decrypt(server, row.sealed)
            change = PostgresGrantTransaction(before)
            yield change
            if change.grant == before:
                return
            if change.grant is None:
                await session.delete(row)
            else:
                sealed = self._cipher.encrypt(msgspec.json.encode(change.grant))
                row = row or OAuthGrant(server=server, owner=owner, url=url, sealed=sealed)
                row.sealed, row.changed_at, row.refreshing_until = sealed, datetime.now(UTC), None
                row.challenge = None
                session.add(row)

    async def claim_refresh(self, server: str, owner: str, url: str, *, seconds: float) -> RefreshClaim | None:
        values = {"server": server, "owner": owner, "url": url, "name": _lock_name(server, owner, url)}
        async with self._database.session() as session:
            connection = await session.connection()
            result = await connection.execute(_CLAIM_STATEMENT, {**values, "duration": timedelta(seconds=seconds)})
            sealed = result.scalar_one_or_none()
        return None if sealed is None else RefreshClaim(self._decrypt(server, sealed), sealed)

    async def save_refreshed(
        self, server: str, owner: str, url: str, claim: RefreshClaim, grant: Grant | None
    ) -> Grant | None:
        async with self._database.session() as session:
            row = await self._lock_row(session, server, owner, url)
            if row is None or row.sealed != claim.version:
                return row and self._decrypt(server, row.sealed)
            if grant is None:
                await session.delete(row)
                return None
            row.refreshing_until = None
            if grant != claim.grant:
                row.sealed, row.changed_at = self._cipher.encrypt(msgspec.json.encode(grant)), datetime.now(UTC)
            session.add(row)
        return grant

    async def save_challenge(self, server: str, owner: str, url: str, challenge: str) -> None:
        async with self._database.session() as session:
            await session.exec(update(OAuthGrant).where(*_match(server, owner, url)).values(challenge=challenge))

    async def get_challenge(self, server: str, owner: str, url: str) -> str | None:
        async with self._database.session() as session:
            return (await session.exec(select(OAuthGrant.challenge).where(*_match(server, owner, url)))).first()

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
        await connection.execute(_LOCK_STATEMENT, {"name": _lock_name(server, owner, url)})
        return await session.get(OAuthGrant, (server, owner, url))

    def _decrypt(self, server: str, sealed: bytes) -> Grant | None:
        plain = self._cipher.decrypt(sealed)
        if plain is None:
            log.warning("grant_decryption_failed", server=server)
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


def _match(server: str, owner: str, url: str) -> tuple[ColumnElement[bool], ...]:
    return col(OAuthGrant.server) == server, col(OAuthGrant.owner) == owner, col(OAuthGrant.url) == url


def _hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _lock_name(server: str, owner: str, url: str) -> str:
    return f"grant {server} {owner} {url}"
