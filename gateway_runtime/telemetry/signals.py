"""Which signals OpenTelemetry's variables switch on, without its packages."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from gateway_runtime.errors import ConfigError

SERVICE_NAME = "agent-gateway"
TOOLS_SERVICE_NAME = "tools-server"
_PREFIX = "OTEL_"
_PROTOCOL = "http/protobuf"
_EXPORTERS = ("otlp", "none", "")


class Signals(NamedTuple):
    """The signals that are sent over OTLP."""

    traces: bool = False
    metrics: bool = False
    logs: bool = False


def load_standard_variables(file: Path = Path(".env")) -> None:
    """Put OpenTelemetry's variables of `.env` into the environment.

    Its SDK reads them there.
    """
    try:
        if _PREFIX not in file.read_text(errors="replace"):
            return
    except OSError:
        return
    from dotenv import dotenv_values

    for name, value in dotenv_values(file).items():
        if name.startswith(_PREFIX) and value:
            os.environ.setdefault(name, value)


def read_signals(environment: Mapping[str, str]) -> Signals:
    """Read the signals.

    An endpoint switches traces and metrics on, as the specification says. Logs must be asked for by
    OTEL_LOGS_EXPORTER=otlp or by an endpoint of their own, because most machines collect what the process writes.

    Raises:
        ConfigError: the variables ask for an exporter or a protocol that is not supported.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Signals()
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
