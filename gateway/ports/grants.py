"""Stored grants of MCP servers that require a sign-in."""

from abc import abstractmethod
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from gateway.domain.grants import AuthorizationRequest, Grant
from gateway.domain.messages import JsonObject


class GrantTransaction(Protocol):
    """A locked grant.

    The end of the block stores the value of `grant`; None deletes it.
    """

    grant: Grant | None


class RefreshClaim(msgspec.Struct, frozen=True):
    """The right of one worker to refresh a stored grant.

    `version` is the stored form of `grant`, which a sign-in or sign-out changes.
    """

    grant: Grant | None
    version: bytes


class GrantStore(Protocol):
    """Stores encrypted grants and the sign-ins in progress.

    Every method may raise StorageUnavailable.
    """

    @abstractmethod
    async def get_grant(self, server: str, owner: str, url: str) -> Grant | None:
        """Return the grant for a server at exactly this address."""
        ...

    @abstractmethod
    async def list_grants(self, owners: Collection[str]) -> dict[tuple[str, str, str], Grant]:
        """Return the grants of owners by server, owner and URL."""
        ...

    @abstractmethod
    def begin_transaction(self, server: str, owner: str, url: str) -> AbstractAsyncContextManager[GrantTransaction]:
        """Change a grant.

        The block must wait for nothing but the database.
        """
        ...

    @abstractmethod
    async def claim_refresh(self, server: str, owner: str, url: str, *, seconds: float) -> RefreshClaim | None:
        """Exclude other workers from refreshing a grant for some seconds.

        None: another worker refreshes it.
        """
        ...

    @abstractmethod
    async def save_refreshed(
        self, server: str, owner: str, url: str, claim: RefreshClaim, grant: Grant | None
    ) -> Grant | None:
        """Store a refreshed grant, end its claim, and return the stored grant.

        A grant that a sign-in or sign-out has changed meanwhile stays as it is.
        """
        ...

    @abstractmethod
    async def save_challenge(self, server: str, owner: str, url: str, challenge: str) -> None:
        """Store the `WWW-Authenticate` header of an answer that asks for further scopes.

        A changed grant forgets it.
        """
        ...

    @abstractmethod
    async def get_challenge(self, server: str, owner: str, url: str) -> str | None: ...

    @abstractmethod
    async def delete_grant(self, server: str, owner: str, url: str, *, by: str) -> None:
        """Delete a grant, if it exists, on behalf of `by`."""
        ...

    @abstractmethod
    async def save_request(self, ticket: str, request: AuthorizationRequest) -> None: ...

    @abstractmethod
    async def find_request(self, ticket: str) -> AuthorizationRequest | None:
        """Return the sign-in of a ticket that is still valid."""
        ...

    @abstractmethod
    async def expect_callback(self, ticket: str, state: str) -> None:
        """Set the `state` that the answer must contain.

        The authorization server answers this sign-in.
        """
        ...

    @abstractmethod
    async def save_callback(self, ticket: str, state: str, answer: JsonObject) -> bool:
        """Store the authorization server's answer once. False: no sign-in waits for it."""
        ...

    @abstractmethod
    async def get_callback(self, ticket: str, state: str) -> JsonObject | None:
        """Return the answer, if it has arrived.

        Raises:
            NotFound: the sign-in was restarted or has ended, so `state` is no longer valid.
        """
        ...

    @abstractmethod
    async def save_outcome(self, ticket: str, outcome: str) -> None:
        """End a sign-in.

        The outcome "" is success, else it is the problem.
        """
        ...

    @abstractmethod
    async def get_outcome(self, ticket: str) -> str | None:
        """Return the outcome of a sign-in; None if it is in progress."""
        ...
