"""`make profile`: where a workload spends the gateway's CPU.

py-spy samples the running gateway, which stays as it is, from outside. The flame graph is `build/profile.svg`.
"""

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path

from benchmarks import workloads
from benchmarks.processes import ROOT
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import Gateway, SharedServers, ToolServer, UpstreamServer
from benchmarks.workloads import Workload, WorkloadResult

_PY_SPY = ROOT / ".tools" / "bin" / "py-spy"
_SAMPLES_PER_SECOND = 500
_LISTED_FUNCTIONS = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiling", description=__doc__)
    parser.add_argument("--only", default="plain", help="the first workload whose name contains this (default: plain)")
    parser.add_argument("--seconds", type=int, default=15, help="how long to sample (default: 15)")
    options = parser.parse_args()
    selected = next((workload for workload in workloads.FULL if options.only in workload.name), None)
    if selected is None:
        sys.exit("The workloads are: " + "; ".join(workload.name for workload in workloads.FULL))
    asyncio.run(_profile_workload(selected, options.seconds))


async def _profile_workload(workload: Workload, seconds: int) -> None:
    graph = ROOT / "build" / "profile.svg"
    graph.parent.mkdir(exist_ok=True)
    with create_work_directory() as directory, stop_at_end() as running:
        upstream, tools = UpstreamServer(SharedServers(directory, "", "")), ToolServer(SharedServers(directory, "", ""))
        running += [upstream, tools]
        await upstream.start()
        await tools.start()
        addresses = f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp"
        gateway = Gateway(SharedServers(directory, *addresses))
        running.append(gateway)
        await gateway.start()
        result = WorkloadResult(workload, gateway.name)
        await workloads.run_workload(workload, gateway, result)
        stacks = directory / "stacks"
        recorders = [
            await _start_recorder(gateway, seconds, form, output)
            for form, output in (("flamegraph", graph), ("raw", stacks))
        ]
        while any(recorder.returncode is None for recorder in recorders):
            await workloads.run_workload(workload, gateway, result)
        if any(recorder.returncode for recorder in recorders):
            sys.exit("py-spy could not read the process: it needs root, or the right to trace processes.")
        for line in _list_functions(stacks):
            print_line(line)
    print_line(f"{workload.name}: {result.requests} requests")
    print_line(f"wrote {graph.relative_to(ROOT)}")


async def _start_recorder(gateway: Gateway, seconds: int, form: str, output: Path) -> asyncio.subprocess.Process:
    assert gateway.process is not None
    return await asyncio.create_subprocess_exec(
        *(_PY_SPY, "record", "--pid", str(gateway.process.pid), "--duration", str(seconds), "--nonblocking"),
        *("--rate", str(_SAMPLES_PER_SECOND), "--format", form, "--output", str(output)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


def _list_functions(stacks: Path) -> list[str]:
    """List the functions with the largest shares of the samples.

    A function's share counts what it calls, too; the second figure does not.
    """
    whole: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        for frame in set(frames):
            whole[frame] += int(count)
        alone[frames[-1]] += int(count)
    total = sum(alone.values()) or 1
    return [
        f"{100 * count / total:5.1f} % {100 * alone[frame] / total:5.1f} % alone  {frame}"
        for frame, count in whole.most_common(_LISTED_FUNCTIONS)
    ]


if __name__ == "__main__":
    main()
