"""Interfaces of the pass-through to the model's server."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

import msgspec

from gateway.domain.messages import JsonObject, Principal, Usage
from gateway.domain.spending import RequestHold


class StreamedBody(Protocol):
    """Request body in pieces. `size` is in bytes."""

    @property
    def size(self) -> int: ...

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True, kw_only=True)
class UpstreamRequest:
    """A request to the model's server.

    `path` is below the server's API, such as `audio/speech`. The request waits for the rate limits of `model`, as one
    of `tokens` by `user`; without a model, it does not wait.
    """

    method: str
    path: str
    content_type: str = ""
    body: bytes | StreamedBody = b""
    model: str = ""
    tokens: int = 0
    user: str = ""


class UpstreamAnswer(Protocol):
    """The answer of the model's server, whose status is a success."""

    @property
    def content_type(self) -> str: ...

    @abstractmethod
    def iterate_bytes(self) -> AsyncGenerator[bytes]:
        """Yield the body.

        Raises:
            ModelError: the answer broke off or is too large.
        """
        ...


class UpstreamApi(Protocol):
    """The API of the model's server beyond chat."""

    @abstractmethod
    def open(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Send a request, and wait for the head of its answer.

        Raises:
            NotFound: the server does not have this part of the API, or what the path names.
            GatewayError: the server refuses the request, or cannot be reached.
        """
        ...


class RequestUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of a request to the model's server.

    `endpoint` is the path of the client's request, such as `/v1/embeddings`; `status` is that of a turn. `subject`
    names the object of the request in the audit log.
    """

    id: UUID
    principal: Principal
    endpoint: str
    action: str
    subject: str
    model: str
    status: str
    usage: Usage
    cost_usd: float | None = None
    error_code: str | None = None
    detail: JsonObject = {}


class RequestBudgets(Protocol):
    """Budgets of requests that are no turns."""

    @abstractmethod
    async def reserve_request(self, principal: Principal, hold: RequestHold, *, strict: bool = False) -> bool:
        """Reserve the estimated cost of a request.

        Return False for a principal without a budget: nothing is reserved. With `strict`, the estimate must fit in what
        remains even while nothing else runs.

        Raises:
            BudgetExceeded: the budget is used up, or the rest of it is reserved or too small.
            StorageUnavailable: the budget cannot be read.
        """
        ...


class RequestLedger(Protocol):
    """The usage of requests, beside that of turns."""

    @abstractmethod
    async def record(self, used: RequestUsage, hold_id: UUID | None = None) -> None:
        """Store the usage of a request, with an audit entry.

        Its reservation ends.
        """
        ...


ObjectKind = Literal["file", "batch"]
PENDING_PREFIX = "pending-"
"""Prefix of the id of an object that is still being made."""


class UpstreamObject(msgspec.Struct, frozen=True, kw_only=True):
    """File or batch of the model's server, with its owner.

    `body` is the object as the server described it last. `estimate`: see `BatchEstimate`. `hold_id` is the reservation
    of a batch, which counts until the batch `is_settled`. An object that `is_pending` has an id of the gateway, and as
    `body` what the request says; its row is written before the request is sent.
    """

    id: str
    kind: ObjectKind
    owner: str
    key: str | None = None
    body: JsonObject
    estimate: JsonObject | None = None
    hold_id: UUID | None = None
    is_settled: bool = False

    @property
    def is_pending(self) -> bool:
        return self.id.startswith(PENDING_PREFIX)


class UpstreamObjects(Protocol):
    """Owners of files and batches. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def add(self, *objects: UpstreamObject) -> None:
        """Add objects.

        The reservation of a batch has no end from now on.
        """
        ...

    @abstractmethod
    async def confirm(self, pending: UpstreamObject, *objects: UpstreamObject) -> int:
        """Add objects in place of a pending one.

        Return how many were not known before.
        """
        ...

    @abstractmethod
    async def delete_pending(self, owner: str) -> None:
        """Delete an owner's pending objects."""
        ...

    @abstractmethod
    async def get(self, owner: str, kind: ObjectKind, object_id: str) -> UpstreamObject:
        """Raises:
        NotFound: the owner has no such object.
        """
        ...

    @abstractmethod
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
        """List an owner's objects after the object `after`, without pending ones."""
        ...

    @abstractmethod
    async def update(self, item: UpstreamObject) -> None:
        """Store the body of an object.

        The body of an open batch does not replace that of a settled one.
        """
        ...

    @abstractmethod
    async def settle(self, item: UpstreamObject, used: Sequence[RequestUsage]) -> None:
        """Replace the reservation of a batch by its usage, once."""
        ...

    @abstractmethod
    async def claim_open_batches(self, *, limit: int, older_than_seconds: float) -> list[UpstreamObject]:
        """Claim batches that are not settled and were not read lately."""
        ...

    @abstractmethod
    async def delete(self, item: UpstreamObject) -> None: ...

    @abstractmethod
    async def delete_hold(self, hold_id: UUID) -> None:
        """End a reservation without usage."""
        ...
