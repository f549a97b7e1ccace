"""Interface of the queue of webhook messages."""

from abc import abstractmethod
from typing import Protocol
from uuid import UUID

import msgspec


class WebhookMessage(msgspec.Struct, frozen=True):
    """Message that this worker has claimed.

    `attempts` counts the claims, and fences the result. `headers` are those that its receiver asked for.
    """

    id: UUID
    url: str
    payload: str
    attempts: int
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])


class PushConfig(msgspec.Struct, frozen=True):
    """A receiver of a task's push notifications.

    Each message carries the `token`, and the `credentials` of a `scheme` of HTTP.
    """

    id: str
    url: str
    token: str = ""
    scheme: str = ""
    credentials: str = ""

    @property
    def headers(self) -> dict[str, str]:
        headers = {"X-A2A-Notification-Token": self.token} if self.token else {}
        if self.scheme and self.credentials:
            headers["Authorization"] = f"{self.scheme} {self.credentials}"
        return headers


class WebhookQueue(Protocol):
    """Queue of messages in the database.

    A claim lasts for a limited time; then another worker may claim the message.
    """

    @abstractmethod
    async def claim(self, limit: int, *, seconds: float) -> list[WebhookMessage]:
        """Claim messages that are due.

        Raises:
            StorageUnavailable: the database cannot be reached.
        """
        ...

    @abstractmethod
    async def mark_delivered(self, message: WebhookMessage) -> None: ...

    @abstractmethod
    async def mark_failed(self, message: WebhookMessage, error: str, *, retry_seconds: float | None) -> None:
        """Record a failed attempt. Without `retry_seconds` it was the last."""
        ...

    @abstractmethod
    async def delete_old(self, days: float) -> None:
        """Delete messages that ended longer ago."""
        ...
