"""Definitions of metrics, without the library that counts them."""

from dataclasses import dataclass
from typing import Literal

_UNIT_SUFFIXES = {"s": "_seconds", "By": "_bytes", "USD": "_usd"}
SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets for waits inside of a process and its database."""
LONG_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""The buckets that the semantic conventions of GenAI give for durations."""
AGENT_SECONDS = tuple(0.1 * 2**power for power in range(13))
"""The buckets that they give for an agent's turns."""
MCP_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""The buckets that the semantic conventions of MCP give."""
TOKEN_COUNTS = tuple(float(4**power) for power in range(14))
"""The buckets that the semantic conventions of GenAI give for tokens."""


@dataclass(frozen=True)
class MetricFamily:
    """A metric with its labels.

    `name`, `unit` and `labels` are OpenTelemetry's; those of its conventions have dots. Several workers add their
    gauges up, or show the largest with `combine`.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()
    combine: Literal["sum", "max"] = "sum"

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus, without the suffix `_total` of counters."""
        suffix = _UNIT_SUFFIXES.get(self.unit, "")
        name = self.name.replace(".", "_")
        return name if name.endswith(suffix) else f"{name}{suffix}"

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """The labels in Prometheus, in the same order."""
        return tuple(label.replace(".", "_") for label in self.labels)
