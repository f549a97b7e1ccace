"""Test of the wheel in an empty folder."""

import asyncio
import json
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Generator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.running_stack import ROOT, START_SECONDS, RunningStack, clean_environment, find_free_port
from tests.e2e.test_up import create_directory
from tests.eventually import eventually

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without network: the build backend is installed."""
    pytest.importorskip("hatchling")
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture
def directory() -> Generator[Path]:
    with create_directory() as path:
        yield path


def install(wheel: Path, environment: Path) -> Path:
    """Install the wheel and its commands; return the directory of the commands.

    Its dependencies are those of this environment, whose editable packages are not on the path.
    """
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert installed.returncode == 0, installed.stderr
    (site_packages,) = (environment / "lib").glob("python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def test_wheel_holds_migrations_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"gateway", "gateway_console", "gateway_runtime", "tools_server"}
    shipped = {
        str(path.relative_to(ROOT)) for path in (ROOT / "migrations").rglob("*.py") if "__pycache__" not in path.parts
    }
    assert {
        f"gateway_runtime/{name}" for name in (*shipped, "migrations/schema.sql", "alembic.ini", "mcp.json")
    } <= names
    assert not any("__pycache__" in name for name in names)


@pytest.mark.timeout(400)
async def test_installed_wheel_runs_everything_from_an_empty_folder(wheel: Path, directory: Path) -> None:
    commands, work = install(wheel, directory / "venv"), directory / "work"
    work.mkdir()
    port, tools_port = find_free_port(), find_free_port()
    environment = clean_environment(GATEWAY_PORT=str(port), TOOLS_SERVER_PORT=str(tools_port), LOGNAME=f"agw-{port}")
    environment.pop("PYTHONPATH", None)
    output = directory / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [commands / "agent-gateway", "up"], cwd=work, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:

        def has_announced() -> bool:
            assert process.poll() is None, output.read_text()
            return b"\nTry:" in output.read_bytes()

        await eventually(has_announced, timeout_seconds=START_SECONDS)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            url = f"http://127.0.0.1:{port}"
            stack = RunningStack(url, session, process, work / ".data", tools_port, environment, output)
            await stack.wait_until_ready()
            reply = await stack.chat("What is 23*19?")
            assert [call["tool"] for call in reply.body["tool_calls"]] == ["calculator"]
            assert "437" in reply.body["response"]
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(30):
                assert await stack.wait_for_exit() == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
    assert sorted(path.name for path in work.iterdir()) == [".data", "mcp.json"]
    assert "mcp.json was created here" in output.read_text()
    assert json.loads((work / "mcp.json").read_text()) == json.loads((ROOT / "mcp.json").read_text())
    command = [commands / "agent-gateway", "db", "upgrade"]
    upgraded = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
    assert upgraded.stdout == "The database is up to date.\n", upgraded.stderr
