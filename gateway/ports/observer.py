"""The observer of the gateway: spans and metrics.

`gateway/observation` calls it, which takes the place of parts of the gateway only while something watches. No call is
made for a token.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

AttributeValue = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, AttributeValue]
SpanKind = Literal["internal", "client", "server"]
TraceHeaders = Mapping[str, str]
"""The W3C headers of a span, such as traceparent."""


class Span(Protocol):
    """An operation that is under way."""

    @abstractmethod
    def rename(self, name: str) -> None: ...

    @abstractmethod
    def set_attributes(self, attributes: Attributes) -> None: ...

    @abstractmethod
    def add_event(self, name: str, attributes: Attributes) -> None: ...

    @abstractmethod
    def fail(self, error_type: str) -> None:
        """Mark the operation as failed. `error_type` is a code, never a message."""
        ...


class Observer(Protocol):
    """Receives spans and metrics.

    Attributes and labels have no texts of users, secrets or addresses.
    """

    @property
    @abstractmethod
    def captures_content(self) -> bool:
        """Whether spans get the texts of prompts, answers and tools."""
        ...

    @property
    @abstractmethod
    def is_tracing(self) -> bool:
        """Whether spans are recorded; without, only metrics are."""
        ...

    @abstractmethod
    def open_span(
        self,
        name: str,
        attributes: Attributes,
        *,
        kind: SpanKind = "internal",
        parent: TraceHeaders | None = None,
        links: Sequence[TraceHeaders] = (),
    ) -> AbstractContextManager[Span]:
        """Open a span for a block.

        Its parent is that of `parent`, else the current span of the task. An exception fails it.
        """
        ...

    @abstractmethod
    def record_span(
        self, name: str, attributes: Attributes, *, started_at: float, parent: TraceHeaders | None = None
    ) -> None:
        """Record an operation that ends now.

        `started_at` is a time in seconds since 1970. For its parent see `open_span`.
        """
        ...

    @abstractmethod
    def get_trace_headers(self) -> dict[str, str]:
        """Return the headers that continue the current span elsewhere."""
        ...

    @abstractmethod
    def increase_counter(self, name: str, amount: float, *labels: str) -> None:
        """Add to a counter."""
        ...

    @abstractmethod
    def record_value(self, name: str, value: float, *labels: str) -> None:
        """Record a value in a histogram."""
        ...

    @abstractmethod
    def set_gauge(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        ...


class MetricsPage(Protocol):
    """All metrics of this gateway, in a format of Prometheus."""

    @abstractmethod
    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the page and its content type, by the request's `Accept`."""
        ...
