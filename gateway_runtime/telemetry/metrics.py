"""Counters, gauges and histograms in Prometheus' format.

Several workers of one port share a directory of memory-mapped files, PROMETHEUS_MULTIPROC_DIR, from which any of them
answers for all.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

from gateway_runtime.private_files import lock_file
from gateway_runtime.telemetry.families import MetricFamily

_MAX_LABEL_VALUES = 200
_MAX_SERIES = 2_000
_MAX_VALUE_LENGTH = 100
_OTHER = "other"
"""Label value of everything beyond the limits."""
_FILE = re.compile(r"(counter|histogram|gauge\w+)_(\d+)\.db")
_ENDED = 0
"""Process id of the files with the counts of ended workers."""

prometheus_client.disable_created_metrics()


class _BoundedFamily:
    """A metric whose labels have a bounded number of values."""

    def __init__(self, family: MetricFamily, registry: CollectorRegistry) -> None:
        self.family = family
        self._values: list[set[str]] = [set() for _ in family.labels]
        self._children: dict[tuple[str, ...], Any] = {}
        name, labels = family.prometheus_name, family.prometheus_labels
        if family.kind == "counter":
            self._metric: Any = Counter(name, family.help, labels, registry=registry)
        elif family.kind == "histogram":
            self._metric = Histogram(name, family.help, labels, registry=registry, buckets=family.buckets)
        else:
            mode = "livemax" if family.combine == "max" else "livesum"
            self._metric = Gauge(name, family.help, labels, registry=registry, multiprocess_mode=mode)

    def get_child(self, values: tuple[str, ...]) -> Any:
        """Return the series of these label values."""
        child = self._children.get(values)
        if child is None:
            child = self._create_child(values)
            if len(self._children) < 2 * _MAX_SERIES:
                self._children[values] = child
        return child

    def _create_child(self, values: tuple[str, ...]) -> Any:
        if not values:
            return self._metric
        bounded = [self._bound(known, value) for known, value in zip(self._values, values, strict=True)]
        if len(self._children) >= _MAX_SERIES:
            bounded = [_OTHER] * len(bounded)
        return self._metric.labels(*bounded)

    @staticmethod
    def _bound(known: set[str], value: str) -> str:
        value = value[:_MAX_VALUE_LENGTH]
        if value not in known:
            if len(known) >= _MAX_LABEL_VALUES:
                return _OTHER
            known.add(value)
        return value


class Metrics:
    """The metrics of this process.

    With several workers, `render` adds all of theirs up.
    """

    def __init__(self, families: Iterable[MetricFamily]) -> None:
        self.registry = CollectorRegistry()
        self._families = {family.name: _BoundedFamily(family, self.registry) for family in families}
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        self._directory = Path(directory) if directory else None
        if self._directory is None:
            for collector in (prometheus_client.ProcessCollector, prometheus_client.GCCollector):
                collector(registry=self.registry)

    @property
    def families(self) -> Sequence[MetricFamily]:
        return [bounded.family for bounded in self._families.values()]

    def increase_counter(self, name: str, amount: float, *labels: str) -> None:
        """Add to a counter."""
        self._families[name].get_child(labels).inc(amount)

    def record_value(self, name: str, value: float, *labels: str) -> None:
        """Record a value in a histogram."""
        self._families[name].get_child(labels).observe(value)

    def set_gauge(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._families[name].get_child(labels).set(value)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics and their content type.

        It may take some tens of milliseconds: call it in a thread.
        """
        encode, content_type = choose_encoder(accept)
        if self._directory is None:
            return encode(self.registry), content_type
        with lock_file(self._directory / "lock"):  # other workers read or fold the files
            _fold_ended_workers(self._directory)
            shared = CollectorRegistry()
            cast(Any, MultiProcessCollector)(shared, path=str(self._directory))
            return encode(shared), content_type

    def collect(self) -> list[Metric]:
        """Return the metrics of this process alone."""
        return list(self.registry.collect())


def _fold_ended_workers(directory: Path) -> None:
    """Add the files of ended workers to one, which keeps their counts.

    Without it each restart of a worker would leave files that every scrape reads. Gauges end with their worker.
    """
    for path in directory.glob("*.db"):
        match = _FILE.fullmatch(path.name)
        if match is None or (number := int(match[2])) == _ENDED or _is_running(number):
            continue
        if not match[1].startswith("gauge"):
            _add_file(path, directory / f"{match[1]}_{_ENDED}.db")
        path.unlink(missing_ok=True)


def _add_file(path: Path, total: Path) -> None:
    values: Any = cast(Any, MmapedDict).read_all_values_from_file(str(path))
    target: Any = cast(Any, MmapedDict)(str(total))
    try:
        for key, value, timestamp, _ in values:
            target.write_value(key, target.read_value(key)[0] + value, timestamp)
    finally:
        target.close()


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
