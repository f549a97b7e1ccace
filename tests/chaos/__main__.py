"""Random faults of real processes: `make chaos`.

Prints counts at the end; the exit code is 1 if a promise of docs/durability.md was broken.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos.clients import ChaosClients, create_session
from tests.chaos.disk import enter_namespace, mount_small_disk
from tests.chaos.faults import ChaosFaults
from tests.chaos.report import ChaosReport, measure_memory
from tests.chaos.stack import ChaosStack

_WARM_SECONDS = 15.0
_GRACE_SECONDS = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--keep", type=Path, help="copy the logs of all processes to this directory")
    options = parser.parse_args()
    enter_namespace("tests.chaos")
    with tempfile.TemporaryDirectory(prefix="agw-chaos-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        disk = mount_small_disk(directory / "disk")
        try:
            return asyncio.run(_run(options, directory / "disk", has_small_disk=disk))
        finally:
            if options.keep is not None:
                options.keep.mkdir(exist_ok=True)
                for log in (directory / "disk").glob("*.log"):
                    shutil.copy(log, options.keep)
            if disk:
                subprocess.run(["umount", "-l", str(directory / "disk")], check=False)


async def _run(options: argparse.Namespace, directory: Path, *, has_small_disk: bool) -> int:
    async with create_session() as session:
        stack = ChaosStack(directory, session)
        async with stack.run(options.workers):
            clients = ChaosClients(stack, options.seed)
            faults = ChaosFaults(stack, options.seed, disk=has_small_disk)
            running = asyncio.create_task(clients.run(options.clients))
            memory = asyncio.create_task(measure_memory(stack, _WARM_SECONDS))
            try:
                async with asyncio.timeout(60 * options.minutes):
                    await faults.run()
            except TimeoutError:
                pass
            clients.is_closing = True
            await stack.start_postgres()
            await asyncio.wait([running], timeout=_GRACE_SECONDS)
            memory.cancel()
            report = ChaosReport(stack, clients, faults, has_small_disk=has_small_disk)
            failed = await report.print()
            running.cancel()
            return failed


if __name__ == "__main__":
    sys.exit(main())
