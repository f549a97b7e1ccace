"""The observer of a process."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gateway_runtime.telemetry.metrics import Metrics
    from gateway_runtime.telemetry.tracing import Tracing

AttributeValue = str | int | float | bool | Sequence[str]


class OpenSpan:
    """A span that records nothing; those of the tracer do."""

    def rename(self, name: str) -> None: ...

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None: ...

    def add_event(self, name: str, attributes: Mapping[str, AttributeValue]) -> None: ...

    def fail(self, error_type: str) -> None: ...


_NO_SPAN: AbstractContextManager[OpenSpan] = nullcontext(OpenSpan())


class Telemetry:
    """Passes spans to the tracer and figures to the metrics.

    Either may be off.
    """

    def __init__(self, metrics: "Metrics | None" = None, tracing: "Tracing | None" = None) -> None:
        self.metrics = metrics
        self.tracing = tracing

    @property
    def captures_content(self) -> bool:
        return self.tracing is not None and self.tracing.captures_content

    @property
    def is_tracing(self) -> bool:
        return self.tracing is not None

    def open_span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        kind: Literal["internal", "client", "server"] = "internal",
        parent: Mapping[str, str] | None = None,
        links: Sequence[Mapping[str, str]] = (),
    ) -> AbstractContextManager[OpenSpan]:
        """Open a span for a block; without tracing it records nothing."""
        if self.tracing is None:
            return _NO_SPAN
        return self.tracing.open_span(name, attributes, kind=kind, parent=parent, links=links)

    def record_span(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue],
        *,
        started_at: float,
        parent: Mapping[str, str] | None = None,
    ) -> None:
        """Record an operation that ends now."""
        if self.tracing is not None:
            self.tracing.record_span(name, attributes, started_at=started_at, parent=parent)

    def describe_current_span(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes to the span that is current in this task."""
        if self.tracing is not None:
            self.tracing.describe_current_span(attributes)

    def get_trace_headers(self) -> dict[str, str]:
        """Return the headers that continue the current span elsewhere."""
        return {} if self.tracing is None else self.tracing.get_headers()

    def increase_counter(self, name: str, amount: float, *labels: str) -> None:
        """Add to a counter."""
        if self.metrics is not None:
            self.metrics.increase_counter(name, amount, *labels)

    def record_value(self, name: str, value: float, *labels: str) -> None:
        """Record a value in a histogram."""
        if self.metrics is not None:
            self.metrics.record_value(name, value, *labels)

    def set_gauge(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        if self.metrics is not None:
            self.metrics.set_gauge(name, value, *labels)
