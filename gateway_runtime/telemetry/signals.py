"""Which signals OpenTelemetry's variables switch on, without its packages."""

import os
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

from gateway_runtime.errors import ConfigError

SERVICE_NAME = "agent-gateway"
TOOLS_SERVICE_NAME = "tools-server"
_PREFIX = "OTEL_"
_PROTOCOL = "http/protobuf"
_EXPORTERS = ("otlp", "none", "")
_HEADERS = re.compile(r"OTEL_EXPORTER_OTLP_([A-Z]+_)?HEADERS")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*=[\x21-\x7e \t]*")
_COUNT = re.compile(r"0*[1-9]\d{0,9}")
_COUNTS = re.compile(
    r"OTEL_(BSP|BLRP)_(SCHEDULE_DELAY|EXPORT_TIMEOUT|MAX_QUEUE_SIZE|MAX_EXPORT_BATCH_SIZE)"
    r"|OTEL_METRIC_EXPORT_INTERVAL"
)


class Signals(NamedTuple):
    """The signals that are sent over OTLP."""

    traces: bool = False
    metrics: bool = False
    logs: bool = False


def load_standard_variables(file: Path = Path(".env")) -> None:
    """Put OpenTelemetry's variables of `.env` into the environment.

    Its SDK reads them there. An empty one is as good as none, by the specification; the SDK warns of some.
    """
    for name in [name for name, value in os.environ.items() if name.startswith(_PREFIX) and not value.strip()]:
        del os.environ[name]
    try:
        if _PREFIX not in file.read_text(errors="replace"):
            return
    except OSError:
        return
    from dotenv import dotenv_values

    for name, value in dotenv_values(file).items():
        if name.startswith(_PREFIX) and value:
            os.environ.setdefault(name, value)


def _check_propagators(environment: Mapping[str, str]) -> None:
    """Check the names of propagators.

    The MCP SDK loads them as it is imported, also while all is off.

    Raises:
        ConfigError: a propagator is not installed.
    """
    for propagator in environment.get("OTEL_PROPAGATORS", "").split(","):
        name = propagator.strip()
        if name and name.lower() != "none" and not entry_points(group="opentelemetry_propagator", name=name):
            raise ConfigError(f"OTEL_PROPAGATORS: {name!r} is not installed; use tracecontext, baggage or none")


def _check_values(environment: Mapping[str, str]) -> None:
    """Check values that the SDK fails for, or quotes in warnings.

    Those of headers are credentials.

    Raises:
        ConfigError: a value is not valid.
    """
    for name, value in environment.items():
        items = [item.strip() for item in value.split(",") if item.strip()]
        if _HEADERS.fullmatch(name) and not all(map(_HEADER.fullmatch, items)):
            raise ConfigError(f"{name}: must be name=value, name=value, with values in URL encoding")
        if _COUNTS.fullmatch(name) and value.strip() and not _COUNT.fullmatch(value.strip()):
            raise ConfigError(f"{name}: must be a whole number above 0")


def read_signals(environment: Mapping[str, str]) -> Signals:
    """Read the signals.

    An endpoint switches traces and metrics on, as the specification says. Logs must be asked for by
    OTEL_LOGS_EXPORTER=otlp or by an endpoint of their own, because most machines collect what the process writes.

    Raises:
        ConfigError: the variables ask for an exporter or a protocol that is not supported.
    """
    _check_propagators(environment)
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Signals()
    _check_values(environment)
    logs = environment.get("OTEL_LOGS_EXPORTER", "").strip() == "otlp"
    return Signals(
        traces=_is_sent(environment, "TRACES"),
        metrics=_is_sent(environment, "METRICS"),
        logs=_is_sent(environment, "LOGS") and (logs or bool(environment.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"))),
    )


def _is_sent(environment: Mapping[str, str], signal: str) -> bool:
    exporter = environment.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if signal == "METRICS" and exporter == "prometheus":  # METRICS=on is for Prometheus
        return False
    if exporter not in _EXPORTERS:
        raise ConfigError(f"OTEL_{signal}_EXPORTER: {exporter!r} is not supported; use otlp or none")
    if exporter == "none":
        return False
    variables = (f"OTEL_EXPORTER_OTLP_{signal}_", "OTEL_EXPORTER_OTLP_")
    if not any(environment.get(f"{prefix}ENDPOINT", "").strip() for prefix in variables):
        return False
    for prefix in variables:
        if (protocol := environment.get(f"{prefix}PROTOCOL", "").strip()) not in ("", _PROTOCOL):
            raise ConfigError(f"{prefix}PROTOCOL: {protocol!r} is not supported; use {_PROTOCOL}")
    return True
