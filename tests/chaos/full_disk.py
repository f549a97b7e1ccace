"""A gateway whose Postgres runs out of disk: `python -m tests.chaos.full_disk`.

Prints the outcome of each step as JSON, or null if this system does not allow mounts.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.chaos.clients import create_session
from tests.chaos.disk import enter_namespace, fill_disk, mount_small_disk
from tests.chaos.stack import ChaosStack
from tests.eventually import eventually


def main() -> None:
    enter_namespace("tests.chaos.full_disk")
    with tempfile.TemporaryDirectory(prefix="agw-disk-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        if mount_small_disk(directory / "disk"):
            try:
                print(json.dumps(asyncio.run(_run(directory / "disk"))))
            finally:
                subprocess.run(["umount", "-l", str(directory / "disk")], check=False)
        else:
            print("null")


async def _run(directory: Path) -> dict[str, Any]:
    async with create_session() as session:
        stack = ChaosStack(directory, session)
        async with stack.run(1):
            worker = stack.workers[0]

            async def chat() -> tuple[int, str | None]:
                body = {"messages": [{"role": "user", "content": "count to 3 " + os.urandom(50_000).hex()}]}
                async with session.post(f"{worker.url}/api/v1/chat", json=body) as response:
                    return response.status, (await response.json()).get("error", {}).get("code")

            async def read_reason() -> str | None:
                async with session.get(f"{worker.url}/ready") as response:
                    return (await response.json())["database"]["reason"] if response.status == 503 else None

            outcome: dict[str, Any] = {"before": await chat()}
            fill_disk(stack.directory / "database" / "ballast")
            outcome["reason"] = await eventually(read_reason)
            outcome["full"] = await chat()
            outcome["refused"] = await read_reason()
            (stack.directory / "database" / "ballast").unlink()
            await stack.start_postgres()
            await stack.wait_until_ready(worker)
            return outcome | {"after": await chat()}


if __name__ == "__main__":
    sys.exit(main())
