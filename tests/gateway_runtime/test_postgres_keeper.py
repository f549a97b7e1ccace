"""Tests of the thread that keeps an embedded Postgres running."""

import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from queue import SimpleQueue

import asyncpg
import pytest

from gateway_runtime.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError, find_cluster
from gateway_runtime.postgres.keeper import PostgresKeeper
from tests.conftest import FAST_POSTGRES_SETTINGS
from tests.eventually import eventually_blocking
from tests.gateway_runtime.test_embedded_postgres import fetch_value, read_postmaster_pid


@pytest.fixture
def server() -> Generator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="agw-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield find_cluster(Path(directory), FAST_POSTGRES_SETTINGS)


class Reports:
    """Records the reports of a keeper."""

    def __init__(self) -> None:
        self.losses: SimpleQueue[None] = SimpleQueue()
        self.failures: SimpleQueue[Exception] = SimpleQueue()

    def keep(self, server: EmbeddedPostgres) -> PostgresKeeper:
        return PostgresKeeper(server, on_lost=lambda: self.losses.put(None), on_failure=self.failures.put)


def kill_postgres(server: EmbeddedPostgres) -> int:
    pid = read_postmaster_pid(server)
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_for_successor(server: EmbeddedPostgres, pid: int) -> None:
    """Wait until another process than `pid` answers, and the keeper knows it."""

    def has_successor() -> bool:
        try:
            answers = read_postmaster_pid(server) != pid and fetch_value(server, "SELECT 1") == 1
            return answers and server.started_here
        except (OSError, ValueError, asyncpg.CannotConnectNowError):  # it starts, and replaces its file
            return False

    eventually_blocking(has_successor)


def test_killed_postgres_is_started_again(server: EmbeddedPostgres) -> None:
    reports = Reports()
    with reports.keep(server):
        fetch_value(server, "CREATE TABLE t AS SELECT 42 AS x")
        fetch_value(server, "CHECKPOINT")  # the tests' Postgres commits asynchronously
        for _ in range(3):
            wait_for_successor(server, kill_postgres(server))
            reports.losses.get(timeout=30)
        assert fetch_value(server, "SELECT x FROM t") == 42
    assert not server.is_running()
    if not reports.failures.empty():
        raise reports.failures.get()


def test_keeper_of_another_process_takes_over_a_stopped_postgres(server: EmbeddedPostgres) -> None:
    attached_server = find_cluster(server.data_dir, FAST_POSTGRES_SETTINGS)
    attached = Reports()
    with Reports().keep(server) as owner, attached.keep(attached_server):
        assert not attached_server.started_here
        owner.stop()
        attached.losses.get(timeout=30)
        eventually_blocking(lambda: attached_server.started_here)
        assert fetch_value(attached_server, "SELECT 1") == 1
    assert not attached_server.is_running()


def test_failed_restart_is_reported_and_tried_again(server: EmbeddedPostgres) -> None:
    reports = Reports()
    with reports.keep(server):
        settings = server.data_dir / "postgres" / "postgresql.conf"
        working = settings.read_text()
        settings.write_text("broken")
        pid = kill_postgres(server)
        assert isinstance(reports.failures.get(timeout=30), EmbeddedPostgresError)
        settings.write_text(working)
        wait_for_successor(server, pid)


def test_postgres_that_does_not_start_is_an_error(server: EmbeddedPostgres) -> None:
    with Reports().keep(server):
        pass
    (server.data_dir / "postgres" / "postgresql.conf").write_text("broken")
    with pytest.raises(EmbeddedPostgresError, match="did not start"), Reports().keep(server):
        pass
