"""`python -m benchmarks`: measure all servers under all workloads, side by side."""

import argparse
import gc
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks import report, workloads
from benchmarks.gateway_only import (
    SummaryLine,
    compare_worker_counts,
    measure_followers,
    measure_history_and_search,
    measure_start_up,
)
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import (
    Baseline,
    Gateway,
    LiteLLM,
    PreviousRelease,
    Relay,
    SharedServers,
    Subject,
    ToolServer,
    UpCommand,
    UpstreamServer,
)
from benchmarks.workloads import Workload, WorkloadResult

RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run smaller loads without LiteLLM, under two minutes")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md after a quick or partial run, too")
    parser.add_argument("--rounds", type=int, help="rounds per load (default: 1 if quick, else 2)")
    parser.add_argument("--only", help="run only workloads whose names contain this, or `workers`")
    parser.add_argument("--subjects", help="measure only these servers, separated by commas")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gc.freeze()
    gc.disable()  # pauses of the load generator would count as those of the servers
    uvloop.run(_run_benchmarks(options))


async def _run_benchmarks(options: argparse.Namespace) -> None:
    started_at = time.monotonic()
    all_workloads = workloads.QUICK if options.quick else workloads.FULL
    selected = [workload for workload in all_workloads if (options.only or "") in workload.name]
    is_complete = options.only is None and options.subjects is None
    rounds = options.rounds or (1 if options.quick else 2)
    skipped: list[str] = []
    with create_work_directory() as directory, stop_at_end() as running:
        upstream, tools = UpstreamServer(SharedServers(directory, "", "")), ToolServer(SharedServers(directory, "", ""))
        running += [upstream, tools]
        await upstream.start()
        await tools.start()
        shared = SharedServers(directory, f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp")
        subjects = _create_subjects(shared, options, skipped)
        running += subjects
        lines: list[SummaryLine] = []
        for subject in subjects:
            if type(subject) is Gateway and is_complete:
                up = UpCommand(shared)
                running.append(up)
                lines += await measure_start_up(subject, up, rounds)
            else:
                await subject.start()
            print_line(f"{subject.name}: ready in {subject.ready_seconds:.1f} s")
        results = await _measure_workloads(selected, [*subjects, upstream], rounds)
        if is_complete:
            gateway = next(subject for subject in subjects if type(subject) is Gateway)
            lines.append(await measure_followers(gateway))
            lines += await measure_history_and_search(gateway, requests=60 if options.quick else 400)
        if options.only == "workers" or (is_complete and not options.quick):
            lines += await compare_worker_counts(shared, 5)
        for line in lines:
            print_line(f"{line.label}: {line.figure}")
        if options.write or (is_complete and not options.quick):
            RESULTS.write_text(report.format_page(results, lines, [*subjects, upstream], skipped))
            print_line(f"wrote {RESULTS.relative_to(Path.cwd())}")
    print_line(f"total time: {time.monotonic() - started_at:.0f} s")


def _create_subjects(shared: SharedServers, options: argparse.Namespace, skipped: list[str]) -> list[Subject]:
    classes: list[type[Subject]] = [Gateway, PreviousRelease, Baseline, LiteLLM, Relay]
    if options.only == "workers":
        return []
    if options.subjects:
        names = options.subjects.lower().split(",")
        classes = [subject for subject in classes if subject.name.lower() in names]
    elif options.quick:
        classes = [Gateway, Baseline, Relay]
    for installed in (LiteLLM, PreviousRelease):
        if installed in classes and (reason := installed.install_package()) is not None:
            classes.remove(installed)
            skipped.append(f"{installed.name} was skipped: {reason}.")
            print_line(skipped[-1])
    return [subject(shared) for subject in classes]


async def _measure_workloads(
    selected: Sequence[Workload], subjects: list[Subject], rounds: int
) -> list[WorkloadResult]:
    """Run each workload on all servers, round by round.

    In this order, a disturbance of the machine affects all servers.
    """
    results: list[WorkloadResult] = []
    for workload in selected:
        by_name = {
            subject.name: WorkloadResult(workload, subject.name) for subject in subjects if workload.supports(subject)
        }
        for _ in range(rounds):
            for subject in subjects:
                if subject.name in by_name:
                    await workloads.run_workload(workload, subject, by_name[subject.name])
        for line in report.format_results(list(by_name.values()))[2 if results else 0 :]:
            print_line(line)
        results += by_name.values()
    return results


if __name__ == "__main__":
    main()
