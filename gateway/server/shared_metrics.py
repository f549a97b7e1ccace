"""The directory in which several workers of one port keep their metrics."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from gateway.config import ConfigError, Settings

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def share_metrics(settings: Settings, workers: int) -> Generator[dict[str, str]]:
    """Yield the variable that the workers need.

    There is none if one worker runs, or METRICS is off. A directory that the environment names is emptied of the
    figures of an earlier run.

    Raises:
        ConfigError: that directory cannot be used.
    """
    if not settings.metrics or workers < 2:
        yield {}
    elif named := os.environ.get(_VARIABLE):
        try:
            Path(named).mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in Path(named).glob("*.db"):
                path.unlink()
        except OSError as error:
            raise ConfigError(f"{_VARIABLE}: cannot use {named}: {error.strerror}") from None
        yield {}
    else:
        with tempfile.TemporaryDirectory(prefix="agent-gateway-metrics-") as directory:
            yield {_VARIABLE: directory}
