"""`python -m benchmarks.observability`: measure traces and metrics.

The same gateway without them is the baseline, in alternating rounds of one run: 200 streams of 100 tokens, 10 ms apart.
A collector in a process of its own takes what is sent.
"""

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

from benchmarks.load import run_load
from benchmarks.processes import measure_resident_bytes
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import Gateway, SharedServers, Subject, ToolServer, UpstreamServer
from benchmarks.upstream import build_prompt

TOKENS, DELAY_MS, STREAMS = 100, 10, 200
_COLLECTOR = """
import sys
from pathlib import Path
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()
    def do_GET(self):
        self.answer()
    def answer(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Collector(Subject):
    """A receiver of OTLP that keeps nothing."""

    name = "collector"

    def get_command(self) -> list[str]:
        return [sys.executable, "-c", _COLLECTOR, str(self.port)]


class WatchedGateway(Gateway):
    """A gateway with variables of its own."""

    def __init__(self, shared: SharedServers, name: str, variables: dict[str, str]) -> None:
        super().__init__(shared)
        self.name = name
        self._variables = variables

    @property
    def data_dir(self) -> Path:
        return self.shared.directory / self.name

    def get_environment(self) -> dict[str, str]:
        return super().get_environment() | self._variables


async def _run_round(subject: Gateway, total: int) -> tuple[float, float]:
    """Return µs of CPU a token, and the p99 between tokens."""
    assert subject.process is not None
    request = subject.build_request(build_prompt(TOKENS, DELAY_MS))
    before = subject.process.measure_usage()
    stats = await run_load(subject.port, request, tokens=TOKENS, connections=STREAMS, total=total, ramp_up_seconds=1.0)
    assert not stats.errors, stats.errors
    after = subject.process.measure_usage()
    return (after.server_seconds - before.server_seconds) / stats.tokens * 1e6, stats.compute_gap_percentile(99) * 1e3


async def _measure(rounds: int, total: int) -> None:
    with create_work_directory() as directory, stop_at_end() as running:
        empty = SharedServers(directory, "", "")
        upstream, tools, collector = UpstreamServer(empty), ToolServer(empty), Collector(empty)
        for server in (upstream, tools, collector):
            running.append(server)
            await server.start()
        shared = SharedServers(directory, f"http://127.0.0.1:{upstream.port}", f"http://127.0.0.1:{tools.port}/mcp")
        traces = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}"}
        subjects = [
            WatchedGateway(shared, "off", {}),
            WatchedGateway(shared, "metrics", {"METRICS": "on"}),
            WatchedGateway(shared, "all", {"METRICS": "on", **traces}),
        ]
        for subject in subjects:
            running.append(subject)
            await subject.start()
            await _run_round(subject, STREAMS)
        figures: dict[str, list[tuple[float, float]]] = {subject.name: [] for subject in subjects}
        for _ in range(rounds):
            for subject in subjects:
                figures[subject.name].append(await _run_round(subject, total))
        for subject in subjects:
            assert subject.process is not None
            cpu, gap = (statistics.median(values) for values in zip(*figures[subject.name], strict=True))
            memory = measure_resident_bytes([subject.process.pid]) / 1e6
            print_line(
                f"{subject.name}: {cpu:.1f} µs CPU a token, {cpu * TOKENS / 1e3:.2f} ms a turn; between tokens p99 "
                f"{gap:.1f} ms; ready after {subject.ready_seconds:.1f} s; {memory:.0f} MB"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total", type=int, default=600, help="turns of a round")
    options = parser.parse_args()
    asyncio.run(_measure(options.rounds, options.total))


if __name__ == "__main__":
    main()
