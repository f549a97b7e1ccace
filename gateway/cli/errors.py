"""Errors of the configuration, each as a line at the terminal."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

from gateway.common.sanitize import escape_for_terminal
from gateway.config import ConfigError


@contextmanager
def report_config_errors(*, parent_fd: int | None = None) -> Generator[None]:
    """Print a configuration error without its traceback and exit with 2.

    A worker sends the message to its parent at `parent_fd` instead, which prints it once for all workers.
    """
    from gateway_runtime.embedded_postgres import EmbeddedPostgresError

    try:
        yield
    except (ConfigError, EmbeddedPostgresError) as error:
        if parent_fd is not None:
            from gateway_runtime.parent_watchdog import notify_parent

            notify_parent(parent_fd, str(error).encode())
        else:
            print(escape_for_terminal(str(error)), file=sys.stderr)
        raise SystemExit(2) from None
