"""Tests of the supervisor, with small scripts instead of gateway processes."""

import asyncio
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from uuid import UUID

import pytest

from gateway.server.source_watcher import SourceWatcher
from gateway.server.supervisor import FAILED, MISCONFIGURED, STOPPED, ManagedProcess, RestartPolicy, Supervisor
from gateway_runtime.sockets import SharedPort
from tests.eventually import eventually

READY_AND_WAIT = "import os; os.write(0, b'ready'); os.read(0, 9); "


@pytest.fixture
def port() -> Generator[SharedPort]:
    shared = SharedPort("127.0.0.1", 0, setting="GATEWAY_PORT")
    yield shared
    shared.close()


def make_worker(port: SharedPort, code: str, name: str = "worker") -> ManagedProcess:
    return ManagedProcess(name, [sys.executable, "-S", "-c", code], os.environ, port=port, replaceable=True)


async def run_supervisor(*processes: ManagedProcess, restart_policy: RestartPolicy | None = None) -> int:
    async with asyncio.timeout(30):
        return await Supervisor(list(processes), None, restart_policy=restart_policy).run()


async def test_configuration_error_of_workers_is_printed_once(
    port: SharedPort, capfd: pytest.CaptureFixture[str]
) -> None:
    code = f"import os; os.write(0, b'THIS: makes no sense'); raise SystemExit({MISCONFIGURED})"
    assert await run_supervisor(*(make_worker(port, code) for _ in range(3))) == MISCONFIGURED
    assert capfd.readouterr().err == "THIS: makes no sense\n"


@pytest.mark.parametrize(
    ("code", "end"),
    [("raise SystemExit(7)", "exit code 7"), (f"{READY_AND_WAIT}raise SystemExit(0)", "exit code 0")],
    ids=["crash", "exit"],
)
async def test_supervisor_stops_after_repeated_worker_exits(
    port: SharedPort, capfd: pytest.CaptureFixture[str], code: str, end: str
) -> None:
    policy = RestartPolicy(window_seconds=3600.0, min_backoff_seconds=0.001)
    assert await run_supervisor(make_worker(port, code, "worker 1"), restart_policy=policy) == FAILED
    output = capfd.readouterr().err
    assert output.count(f"worker 1 ended with {end}: starting it again") == 4
    assert "worker 1 died 5 times" in output


async def test_workers_wait_until_all_are_ready(port: SharedPort) -> None:
    slow = ManagedProcess("slow", [sys.executable, "-S", "-c", "import os; os.read(0, 9)"], os.environ, port=port)
    fast = make_worker(port, f"{READY_AND_WAIT}raise SystemExit(0)")
    supervisor = Supervisor([fast, slow], None)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        await eventually(lambda: fast.is_ready)
        assert fast.process is not None
        assert (fast.process.returncode, supervisor.ready.is_set()) == (None, False)
        assert slow.parent_socket is not None
        slow.parent_socket.send(b"go")  # it exits before it is ready, which stops the supervisor
        assert await running == STOPPED


async def test_failing_side_task_is_printed_and_stops_no_process(
    port: SharedPort, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        raise KeyError("status")

    worker = make_worker(port, f"{READY_AND_WAIT}os.read(0, 9)")
    supervisor = Supervisor([worker], None)
    supervisor.spawn_task(fail())
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        await supervisor.ready.wait()  # long after the task has failed
        assert not running.done()
        assert capfd.readouterr().err == "A background task of the supervisor failed: KeyError: 'status'\n"
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == STOPPED


async def test_process_that_cannot_be_restarted_stops_the_supervisor(
    port: SharedPort, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable} -S\nimport os; os.unlink(__file__); raise SystemExit(7)")
    program.chmod(0o700)
    process = ManagedProcess("program", [str(program)], os.environ)
    assert await run_supervisor(process, restart_policy=RestartPolicy(min_backoff_seconds=0.001)) == FAILED
    assert "The supervisor failed: FileNotFoundError" in capfd.readouterr().err


async def test_shared_port_in_use_is_a_config_error(port: SharedPort) -> None:
    from gateway.config import ConfigError

    listener = port.create_listener()
    listener.listen()
    with listener, pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port.port_number}: Address already"):
        SharedPort("127.0.0.1", port.port_number, setting="GATEWAY_PORT")


async def test_hangup_reaches_a_worker_that_is_not_ready_yet(port: SharedPort, tmp_path: Path) -> None:
    """The worker may have read the old certificate already."""
    go, started, reloaded = tmp_path / "go", tmp_path / "started", tmp_path / "reloaded"
    code = (
        "import os, pathlib, signal, time;"
        f"signal.signal(signal.SIGHUP, lambda *_: pathlib.Path({str(reloaded)!r}).touch());"
        f"pathlib.Path({str(started)!r}).touch()\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        f"{READY_AND_WAIT}\n"
        f"while not os.path.exists({str(reloaded)!r}): time.sleep(0.01)\n"
        "time.sleep(600)"
    )
    worker = make_worker(port, code)
    supervisor = Supervisor([worker], None, stop_on_hangup=False)
    running = asyncio.create_task(supervisor.run())
    try:
        await eventually(started.exists)
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: worker.reload_pending)
        go.touch()
        await eventually(reloaded.exists)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == STOPPED


async def test_changed_source_starts_every_process_again(
    port: SharedPort, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Failed processes wait for the change; the others are stopped and started."""
    module, starts = tmp_path / "module.py", tmp_path / "starts"
    module.write_text("broken(")
    script = f"import runpy; runpy.run_path({str(module)!r}); {READY_AND_WAIT}"
    count = f"open({str(starts)!r}, 'a').write('x'); {READY_AND_WAIT}"
    broken, healthy = make_worker(port, script, "broken"), make_worker(port, count, "healthy")
    supervisor = Supervisor([broken, healthy], None, source=SourceWatcher([tmp_path], poll_seconds=0.01))
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        errors = ""

        def has_failed() -> bool:
            nonlocal errors
            errors += capfd.readouterr().err
            return "broken ended with exit code 1: waiting for a change of the source" in errors

        await eventually(has_failed)
        await eventually(lambda: starts.exists() and starts.read_text() == "x")
        fixed = tmp_path / "fixed"
        fixed.write_text("fixed = True")
        fixed.replace(module)  # at once: the watcher could see an empty file in between, and then another change
        await supervisor.ready.wait()
        await eventually(lambda: starts.read_text() == "xx")
        (tmp_path / "added.py").touch()
        await eventually(lambda: starts.read_text() == "xxx")
        assert not running.done()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == STOPPED


class ReleaseRecorder:
    """Records the workers whose turns the supervisor releases."""

    def __init__(self) -> None:
        self.released: list[UUID] = []

    async def release(self, worker_id: UUID) -> None:
        await asyncio.sleep(0)
        self.released.append(worker_id)


async def test_turns_of_a_dead_worker_are_released_while_it_waits_for_a_changed_source(
    port: SharedPort, tmp_path: Path
) -> None:
    recorder = ReleaseRecorder()
    worker = make_worker(port, f"{READY_AND_WAIT}os.read(0, 9)")
    supervisor = Supervisor([worker], None, source=SourceWatcher([tmp_path]), release_worker=recorder.release)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        await supervisor.ready.wait()
        worker_id = worker.worker_id
        assert worker.process is not None
        worker.process.kill()
        await eventually(lambda: recorder.released == [worker_id])
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == STOPPED
    assert recorder.released == [worker_id]


async def test_turns_of_a_worker_that_a_stop_kills_are_released(port: SharedPort) -> None:
    recorder = ReleaseRecorder()
    deaf = make_worker(
        port, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY_AND_WAIT}os.read(0, 9)"
    )
    deaf.stop_timeout_seconds = 0.1
    supervisor = Supervisor([deaf], None, release_worker=recorder.release)
    running = asyncio.create_task(supervisor.run())
    async with asyncio.timeout(30):
        await supervisor.ready.wait()
        worker_id = deaf.worker_id
        os.kill(os.getpid(), signal.SIGTERM)
        assert await running == STOPPED
    assert recorder.released == [worker_id]


async def test_turns_of_a_worker_that_dies_too_often_are_released_each_time(port: SharedPort) -> None:
    recorder = ReleaseRecorder()
    policy = RestartPolicy(max_deaths=2, window_seconds=3600.0, min_backoff_seconds=0.001)
    worker = make_worker(port, "raise SystemExit(7)")
    async with asyncio.timeout(30):
        supervisor = Supervisor([worker], None, restart_policy=policy, release_worker=recorder.release)
        assert await supervisor.run() == FAILED
    assert len(set(recorder.released)) == len(recorder.released) == 2
