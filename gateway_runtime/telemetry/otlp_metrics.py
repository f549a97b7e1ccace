"""The metrics of `/metrics`, of this process alone, over OTLP."""

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.samples import Sample

from gateway_runtime.telemetry.export_report import ExportReport
from gateway_runtime.telemetry.families import MetricFamily
from gateway_runtime.telemetry.metrics import Metrics
from gateway_runtime.telemetry.resource import create_resource

_DEFAULT_INTERVAL_SECONDS = 60.0
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class MetricsExport:
    """Sends the metrics of this process to a collector."""

    def __init__(self, metrics: Metrics, service: str, version: str) -> None:
        self._metrics = metrics
        self._exporter: Any = OTLPMetricExporter()
        self._resource = create_resource(service, version)
        self._scope = InstrumentationScope(service, version)
        self._report = ExportReport("metrics")
        self._started_at = time.time_ns()

    @property
    def interval_seconds(self) -> float:
        """Seconds between two exports, of OTEL_METRIC_EXPORT_INTERVAL."""
        try:
            return int(os.environ["OTEL_METRIC_EXPORT_INTERVAL"]) / 1000
        except (KeyError, ValueError):
            return _DEFAULT_INTERVAL_SECONDS

    def send(self) -> None:
        """Send all metrics once.

        It waits for the collector: call it in a thread.
        """
        metrics = list(self._convert())
        scope = ScopeMetrics(scope=self._scope, metrics=metrics, schema_url="")
        data = MetricsData([ResourceMetrics(resource=self._resource, scope_metrics=[scope], schema_url="")])
        result = self._exporter.export(data)
        self._report.record(succeeded=result is MetricExportResult.SUCCESS, count=len(metrics))

    def _convert(self) -> Iterable[Metric]:
        samples = {metric.name: list(metric.samples) for metric in self._metrics.collect()}
        now = time.time_ns()
        for family in self._metrics.families:
            found = samples.get(family.prometheus_name, [])
            data = _make_histogram if family.kind == "histogram" else _make_numbers
            yield Metric(
                name=family.name,
                description=family.help,
                unit=family.unit,
                data=data(family, found, self._started_at, now),
            )


def _read_attributes(family: MetricFamily, sample: Sample) -> dict[str, str]:
    """Return the labels under their names in OpenTelemetry.

    An attribute without a value is left out.
    """
    pairs = zip(family.labels, family.prometheus_labels, strict=True)
    return {attribute: value for attribute, label in pairs if (value := sample.labels[label])}


def _make_numbers(family: MetricFamily, samples: list[Sample], start: int, now: int) -> Sum | Gauge:
    points = [NumberDataPoint(_read_attributes(family, sample), start, now, sample.value) for sample in samples]
    return Sum(points, _CUMULATIVE, is_monotonic=True) if family.kind == "counter" else Gauge(points)


def _make_histogram(family: MetricFamily, samples: list[Sample], start: int, now: int) -> Histogram:
    """Build the points of a histogram.

    Its buckets are not cumulative in OTLP.
    """
    series: dict[tuple[tuple[str, str], ...], dict[str, Any]] = defaultdict(lambda: {"buckets": {}, "sum": 0.0})
    for sample in samples:
        labels = _read_attributes(family, sample)
        entry = series[tuple(labels.items())]
        if sample.name.endswith("_bucket"):
            entry["buckets"][float(sample.labels["le"])] = sample.value
        elif sample.name.endswith("_sum"):
            entry["sum"] = sample.value
    points: list[HistogramDataPoint] = []
    for labels, entry in series.items():
        cumulative = [int(entry["buckets"][bound]) for bound in sorted(entry["buckets"])]
        counts = [count - before for before, count in zip([0, *cumulative], cumulative, strict=False)]
        points.append(
            HistogramDataPoint(
                attributes=dict(labels),
                start_time_unix_nano=start,
                time_unix_nano=now,
                count=cumulative[-1],
                sum=entry["sum"],
                bucket_counts=counts,
                explicit_bounds=[float(bound) for bound in family.buckets],
                min=0.0,
                max=0.0,
            )
        )
    return Histogram(points, _CUMULATIVE)
