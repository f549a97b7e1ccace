"""Tests of the image's commands as any user on a read-only root.

OpenShift runs containers so. The tests need root, `unshare` and `setpriv`, and are skipped elsewhere.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from gateway_runtime.postgres.url import build_url
from tests.e2e.running_stack import ROOT, START_SECONDS
from tests.eventually import eventually
from tests.requirements import require
from tests.stack import find_free_port
from tests.tcp_postgres import PASSWORD, serve_tcp_postgres

UID = 1_000_650_000
_SCRIPT = """
set -e
mount --make-rprivate /
mount --bind "$0" "$0"
awk '{print $5}' /proc/self/mountinfo | while read -r point; do
  case "$point" in "$0"|/proc*|/dev*|/sys*) ;; *) mount -o remount,bind,ro "$point" ;; esac
done
exec setpriv --reuid UID --regid 0 --clear-groups --no-new-privs "$@"
""".replace("UID", str(UID))
_CHECK = "import asyncpg, os; assert os.geteuid() != 0; open(os.path.join(os.environ['TMPDIR'], 'x'), 'w')"
_WRITE = "open('/var/tmp/agw-must-be-read-only', 'w')"


def build_command(directory: Path, *arguments: str) -> list[str]:
    return ["unshare", "-m", "sh", "-c", _SCRIPT, str(directory), sys.executable, *arguments]


def build_environment(directory: Path, **settings: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": "/home/gateway",
        "TMPDIR": str(directory / "tmp"),
        "GATEWAY_DATA_DIR": str(directory / "data"),
        **settings,
    }


@pytest.fixture
def directory() -> Generator[Path]:
    """The volumes and /tmp of a container; all else is read-only."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs root, unshare and setpriv")
    with tempfile.TemporaryDirectory(prefix="agw-uid-", dir="/tmp") as path:
        root = Path(path)
        for name in ("", "tmp", "data", "secrets/postgres", "secrets/redis", "secrets/tools"):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name).chmod(0o775)
        environment = build_environment(root)
        check = subprocess.run(
            build_command(root, "-c", _CHECK), cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if check.returncode != 0:
            pytest.skip(f"no mount namespace, or the interpreter is private: {check.stderr.strip()[-200:]}")
        writes = subprocess.run(build_command(root, "-c", _WRITE), cwd=ROOT, env=environment, capture_output=True)
        assert b"Read-only file system" in writes.stderr
        yield root


def run(directory: Path, *arguments: str, **settings: str) -> str:
    ended = subprocess.run(
        build_command(directory, "-m", "gateway.cli", *arguments),
        cwd=ROOT,
        env=build_environment(directory, **settings),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


async def chat_with_a_tool(directory: Path, **settings: str) -> None:
    """Start both servers, and chat with the first key."""
    gateway_port, tools_port = find_free_port(), find_free_port()
    settings |= {
        "GATEWAY_PORT": str(gateway_port),
        "TOOLS_SERVER_PORT": str(tools_port),
        "API_KEY_FILE": str(directory / "data" / "api-key"),
        "TOOLS_SERVER_STATE_KEY_FILE": str(directory / "secrets" / "tools" / "state-key"),
    }
    environment = build_environment(directory, **settings)
    commands = (("gateway.cli", "serve"), ("tools_server.cli",))
    processes = [
        subprocess.Popen(build_command(directory, "-m", *command), cwd=ROOT, env=environment) for command in commands
    ]
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:

            async def answer() -> str:
                assert all(process.poll() is None for process in processes)
                key_file = directory / "data" / "api-key"
                body = {"messages": [{"role": "user", "content": "What is 23*19?"}]}
                if not key_file.exists():
                    return ""
                headers = {"X-API-Key": key_file.read_text()}
                url = f"http://127.0.0.1:{gateway_port}/api/v1/chat/stream"
                try:
                    async with session.post(url, json=body, headers=headers) as response:
                        text = await response.text()
                except aiohttp.ClientConnectionError:
                    return ""
                return text if "437" in text and "turn.completed" in text else ""

            assert await eventually(answer, timeout_seconds=START_SECONDS)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


@pytest.mark.faults
async def test_commands_of_compose_run_as_a_random_uid_on_a_read_only_root(directory: Path) -> None:
    with serve_tcp_postgres() as server:
        admin = await asyncpg.connect(server.admin_dsn)
        literal = PASSWORD.replace("'", "''")
        await admin.execute(f"CREATE ROLE gw LOGIN PASSWORD '{literal}'")
        await admin.execute("CREATE DATABASE gw OWNER gw")
        await admin.close()
        await asyncio.to_thread(run, directory, "compose-secrets", str(directory / "secrets"))
        address = build_url("127.0.0.1", server.port, user="gw", password=PASSWORD, database="gw")
        assert "up to date" in await asyncio.to_thread(run, directory, "db", "upgrade", DATABASE_URL=address)
        await chat_with_a_tool(directory, DATABASE_URL=address)
        token = await asyncio.to_thread(run, directory, "tools-token")
        assert token.count(".") == 2


@pytest.mark.faults
@require(bool(list(Path("/usr/lib").glob("*/libnss_wrapper.so"))), "nss_wrapper (`make debian-packages`)")
async def test_embedded_postgres_runs_as_a_random_uid_on_a_read_only_root(directory: Path) -> None:
    await asyncio.to_thread(run, directory, "compose-secrets", str(directory / "secrets"))
    await chat_with_a_tool(directory)
    assert {file.stat().st_uid for file in (directory / "data").iterdir()} == {UID}
