"""The last exchanged token of a user, stored for resumed turns."""

import time
from collections.abc import Sequence

from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.grants import Grant
from gateway.mcp_client.oauth.grants.renewed_token import DEFAULT_LIFETIME_SECONDS
from gateway.mcp_client.oauth.grants.token_endpoint import IssuedToken
from gateway.ports.grants import GrantStore
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

Rights = tuple[str, tuple[str, ...] | None]
"""Role and scopes of a caller."""
_TIMEOUT_SECONDS = 2.0
_MIN_LIFETIME_SECONDS = 5.0
_KEY_SUFFIX = "#exchanged"
"""Keeps the token apart from a sign-in at the same server."""


class StoredExchange:
    """A user's exchanged token in the database, encrypted.

    It serves callers with the same rights only. Without the database, there is none.
    """

    def __init__(self, grants: GrantStore, server: ServerConfig, owner: str) -> None:
        self._grants = grants
        self._server = server.name
        self._key = (server.name, owner, server.url + _KEY_SUFFIX)

    async def save(self, rights: Rights, token: IssuedToken) -> None:
        """Replace the stored token."""
        lifetime = DEFAULT_LIFETIME_SECONDS if token.expires_in is None else token.expires_in
        client = {"rights": _to_json(rights)}
        grant = Grant(client=client, access_token=token.access_token, expires_at=time.time() + lifetime)
        try:
            async with (
                Deadline.after(_TIMEOUT_SECONDS).limit(),
                self._grants.begin_transaction(*self._key) as transaction,
            ):
                transaction.grant = grant
        except (GatewayError, TimeoutError) as error:
            log.warning("exchanged_token_not_stored", server=self._server, error=type(error).__name__)

    async def load(self, rights: Rights) -> str | None:
        """Return the stored token, if it is valid and of these rights."""
        try:
            async with Deadline.after(_TIMEOUT_SECONDS).limit():
                grant = await self._grants.get_grant(*self._key)
        except (GatewayError, TimeoutError) as error:
            log.warning("exchanged_token_not_read", server=self._server, error=type(error).__name__)
            return None
        if grant is None or grant.client.get("rights") != _to_json(rights):
            return None
        return grant.access_token if (grant.expires_at or 0) > time.time() + _MIN_LIFETIME_SECONDS else None


def _to_json(rights: Rights) -> Sequence[object]:
    role, scopes = rights
    return [role, None if scopes is None else list(scopes)]
