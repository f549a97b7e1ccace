"""Access tokens that are exchanged for the callers' own tokens."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import httpx2
import msgspec

from gateway.common.concurrency import LruDict
from gateway.domain.caller_token import JWT_KEY, CallerToken
from gateway.domain.messages import Principal
from gateway.mcp_client.caller_identity import get_acting_principal
from gateway.mcp_client.connection.errors import TokenUnavailable
from gateway.mcp_client.oauth.errors import TokenRefused
from gateway.mcp_client.oauth.grants.grant_types import create_caller_grant
from gateway.mcp_client.oauth.grants.renewed_token import RenewedToken
from gateway.mcp_client.oauth.grants.stored_exchange import Rights, StoredExchange
from gateway.mcp_client.oauth.grants.token_endpoint import IssuedToken
from gateway.mcp_client.oauth.tokens import AccessTokenProvider
from gateway.ports.grants import GrantStore
from gateway.ports.servers import ServerConfig

_MAX_TOKENS = 8


class _HeldToken(msgspec.Struct, frozen=True):
    """The token for one token of the caller, and when that expires."""

    token: RenewedToken
    expires_at: float


class CallerTokenProvider(AccessTokenProvider):
    """The tokens of one user at one server.

    Each token of the user is exchanged by itself, as the authorization server may give each other rights. A request
    without one, of the connection itself or of a turn that was resumed, uses that of the user's newest token with the
    same role and scopes that this worker has seen, or else the last exchanged one of any worker. Callers without a JSON
    web token get none.
    """

    def __init__(self, server: ServerConfig, owner: str, grants: GrantStore | None = None) -> None:
        super().__init__(None, server, owner)
        self._stored = StoredExchange(grants, server, owner) if grants is not None else None
        self._server, self._owner = server, owner
        self._exchange = create_caller_grant(server)
        self._held: LruDict[bytes, _HeldToken] = LruDict(_MAX_TOKENS)
        self._newest: LruDict[Rights, bytes] = LruDict(_MAX_TOKENS)

    def serves(self, server: ServerConfig) -> bool:
        """Whether the entry of the server is unchanged."""
        return self._server == server

    def admit_caller(self, principal: Principal) -> None:
        if principal.key != JWT_KEY or principal.user != self._owner:
            raise TokenUnavailable("caller_unknown")
        if (token := principal.token) is not None:
            accepted = self._server.oauth.subject_issuer if self._server.oauth is not None else None
            if not (token.is_main if accepted is None else token.issuer == accepted):
                raise TokenUnavailable("caller_foreign")
            self._hold(principal, token)

    async def get_token(self) -> str | None:
        principal = self._get_caller()
        held = self._find(principal)
        if held is None:
            return await self._load(principal)
        with _translate_refusals():
            return await held.get()

    async def replace_token(self, refused_token: str | None) -> str | None:
        held = self._find(self._get_caller())
        if held is None:
            raise TokenUnavailable("caller_gone")
        with _translate_refusals():
            return await held.replace(refused_token)

    def _get_caller(self) -> Principal:
        principal = get_acting_principal()
        if principal is None:
            raise TokenUnavailable("caller_unknown")
        self.admit_caller(principal)
        return principal

    def _find(self, principal: Principal) -> RenewedToken | None:
        digest = _hash(principal.token) if principal.token is not None else self._newest.get(_get_rights(principal))
        held = self._held.get(digest) if digest is not None else None
        return held and held.token

    async def _load(self, principal: Principal) -> str:
        token = await self._stored.load(_get_rights(principal)) if self._stored is not None else None
        if token is None:
            raise TokenUnavailable("caller_gone")
        return token

    async def _exchange_and_store(self, rights: Rights, token: CallerToken) -> IssuedToken:
        issued = await self._exchange(token.value)
        if self._stored is not None:
            await self._stored.save(rights, issued)
        return issued

    def _hold(self, principal: Principal, token: CallerToken) -> None:
        digest, rights = _hash(token), _get_rights(principal)
        if self._held.get(digest) is None:
            renewed = RenewedToken(self._server.name, partial(self._exchange_and_store, rights, token))
            self._held[digest] = _HeldToken(renewed, token.expires_at)
        newest = self._held.get(self._newest.get(rights, b""))
        if newest is None or token.expires_at >= newest.expires_at:
            self._newest[rights] = digest


@contextmanager
def _translate_refusals() -> Generator[None]:
    try:
        yield
    except TokenRefused as error:
        raise TokenUnavailable("caller_refused") from error
    except httpx2.ConnectError as error:
        raise TokenUnavailable("issuer_unavailable") from error


def _get_rights(principal: Principal) -> Rights:
    return principal.role, principal.scopes


def _hash(token: CallerToken) -> bytes:
    return hashlib.sha256(token.value.get_secret_value().encode()).digest()
