"""The current trace, for code that does not know OpenTelemetry.

While tracing is off, nothing is read. The tracer of a process installs its reader.
"""

from abc import abstractmethod
from typing import Protocol


class TraceReader(Protocol):
    """Reads the span that is current in this task."""

    @abstractmethod
    def get_headers(self) -> dict[str, str]:
        """Return the W3C headers that continue the trace, such as traceparent."""
        ...

    @abstractmethod
    def get_ids(self) -> tuple[str, str] | None:
        """Return the ids of the trace and the span in hexadecimal."""
        ...


_reader: TraceReader | None = None


def install_trace_reader(reader: TraceReader | None) -> None:
    """Set the reader of this process; None: tracing is off."""
    global _reader
    _reader = reader


def get_trace_headers() -> dict[str, str]:
    """Return the headers that continue the current trace.

    There are none while tracing is off.
    """
    return {} if _reader is None else _reader.get_headers()


def get_trace_ids() -> tuple[str, str] | None:
    """Return the ids of the current trace and span."""
    return None if _reader is None else _reader.get_ids()


def is_tracing() -> bool:
    """Return whether this process records traces."""
    return _reader is not None
