"""The current trace, for code that does not know OpenTelemetry.

While tracing is off, nothing is read. The tracer of a process installs its reader.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")
_MAX_HEADER_LENGTH = 8_192


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


def read_trace_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of an ASGI request that name its trace."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1")
        if key in _TRACE_HEADERS and key not in found and len(value) <= _MAX_HEADER_LENGTH:
            found[key] = value.decode("latin-1")
    return found
