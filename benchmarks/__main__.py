"""`python -m benchmarks`: all contestants under all workloads, side by side."""

import argparse
import gc
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks import report, workloads
from benchmarks.gateway_only import Line, followers, history_and_search, start_up, workers
from benchmarks.session import directory, say, stopped
from benchmarks.subjects import Contestant, Gateway, LiteLLM, Obvious, Relay, Surroundings, Tools, Up, Upstream
from benchmarks.workloads import Result, Workload

RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under two minutes: smaller loads, without LiteLLM")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md from a quick or partial run, too")
    parser.add_argument("--rounds", type=int, help="how often each load is put on (1 quick, 2 else)")
    parser.add_argument("--only", help="only the workloads whose names hold this, or `workers`")
    parser.add_argument("--contestants", help="only these, separated by commas")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    gc.freeze()
    gc.disable()  # the load generator's pauses would be the servers'
    uvloop.run(_main(options))


async def _main(options: argparse.Namespace) -> None:
    started = time.monotonic()
    chosen = workloads.QUICK if options.quick else workloads.FULL
    chosen = [workload for workload in chosen if (options.only or "") in workload.name]
    whole = options.only is None and options.contestants is None
    rounds = options.rounds or (1 if options.quick else 2)
    skipped: list[str] = []
    with directory() as place, stopped() as running:
        upstream, tools = Upstream(Surroundings(place, "", "")), Tools(Surroundings(place, "", ""))
        running += [upstream, tools]
        await upstream.start()
        await tools.start()
        around = Surroundings(place, f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp")
        contestants = _contestants(around, options, skipped)
        running += contestants
        lines: list[Line] = []
        for contestant in contestants:
            if isinstance(contestant, Gateway) and whole:
                up = Up(around)
                running.append(up)
                lines += await start_up(contestant, up, rounds)
            else:
                await contestant.start()
            say(f"{contestant.name}: ready in {contestant.ready_seconds:.1f} s")
        results = await _measure(chosen, [*contestants, upstream], rounds)
        if whole:
            gateway = next(contestant for contestant in contestants if isinstance(contestant, Gateway))
            lines.append(await followers(gateway))
            lines += await history_and_search(gateway, requests=60 if options.quick else 400)
        if options.only == "workers" or (whole and not options.quick):
            lines += await workers(around, 5)
        for line in lines:
            say(f"{line.what}: {line.figure}")
        if options.write or (whole and not options.quick):
            RESULTS.write_text(report.page(results, lines, [*contestants, upstream], skipped))
            say(f"written: {RESULTS.relative_to(Path.cwd())}")
    say(f"{time.monotonic() - started:.0f} s in all")


def _contestants(around: Surroundings, options: argparse.Namespace, skipped: list[str]) -> list[Contestant]:
    kinds: list[type[Contestant]] = [Gateway, Obvious, Relay] if options.quick else [Gateway, Obvious, LiteLLM, Relay]
    if options.only == "workers":
        return []
    if options.contestants:
        names = options.contestants.lower().split(",")
        kinds = [kind for kind in (Gateway, Obvious, LiteLLM, Relay) if kind.name.lower() in names]
    if LiteLLM in kinds and (why := LiteLLM.install()) is not None:
        kinds.remove(LiteLLM)
        skipped.append(f"LiteLLM was skipped: {why}.")
        say(skipped[-1])
    return [kind(around) for kind in kinds]


async def _measure(chosen: Sequence[Workload], contestants: list[Contestant], rounds: int) -> list[Result]:
    """Each workload over all contestants, then again: what disturbs the machine disturbs them alike."""
    results: list[Result] = []
    for workload in chosen:
        of_this = {c.name: Result(workload, c.name) for c in contestants if workload.suits(c)}
        for _ in range(rounds):
            for contestant in contestants:
                if contestant.name in of_this:
                    await workloads.run(workload, contestant, of_this[contestant.name])
        found = list(of_this.values())
        for line in report.table(found)[0 if not results else 2 :]:
            say(line)
        results += found
    return results


if __name__ == "__main__":
    main()
