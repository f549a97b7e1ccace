"""The loads of the benchmark, and one run of a load."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from benchmarks.load import LoadStats, compute_percentile, run_load
from benchmarks.processes import ServerProcess, measure_resident_bytes
from benchmarks.subjects import Subject
from benchmarks.upstream import build_prompt

_SAMPLE_SECONDS = 0.2
_TIMEOUT_SECONDS = 90.0


@dataclass(frozen=True)
class Workload:
    """`total` requests over `connections`, which are opened within `ramp_up_seconds`.

    `only` names the servers to measure; empty: all.
    """

    name: str
    tokens: int
    connections: int
    total: int
    delay_ms: int = 0
    stream: bool = True
    tool: bool = False
    tools_offered: bool = False
    ramp_up_seconds: float = 0.0
    only: tuple[str, ...] = ()

    def supports(self, subject: Subject) -> bool:
        return (subject.supports_tools or not self.tool) and (not self.only or subject.name in self.only)

    def build_request(self, subject: Subject) -> bytes:
        prompt = build_prompt(self.tokens, self.delay_ms, tool=self.tool)
        return subject.build_request(prompt, stream=self.stream, tools=self.tool or self.tools_offered)


FULL = (
    Workload("burst: 200 tokens, 1 stream", 200, 1, 100),
    Workload("burst: 200 tokens, 32 streams", 200, 32, 640),
    Workload("burst: 200 tokens, 128 streams", 200, 128, 768),
    Workload("burst: 200 tokens, 32 streams, all tools offered", 200, 32, 640, tools_offered=True, only=("gateway",)),
    Workload("paced: 100 tokens at 10 ms, 200 streams", 100, 200, 600, delay_ms=10, ramp_up_seconds=1.0),
    Workload("paced: 100 tokens at 10 ms, 500 streams", 100, 500, 1000, delay_ms=10, ramp_up_seconds=1.0),
    Workload("plain: 10 tokens in one answer, 32 at once", 10, 32, 640, stream=False),
    Workload("tool call, then 100 tokens, 1 at once", 100, 1, 60, tool=True),
    Workload("tool call, then 100 tokens, 16 at once", 100, 16, 240, tool=True),
    Workload("idle: 3 tokens at 5 s, 1,000 streams", 3, 1000, 1000, delay_ms=5000, ramp_up_seconds=2.0),
)
QUICK = (
    Workload("burst: 200 tokens, 1 stream", 200, 1, 60),
    Workload("burst: 200 tokens, 32 streams", 200, 32, 320),
    Workload("burst: 200 tokens, 128 streams", 200, 128, 256, only=("gateway", "relay")),
    Workload("paced: 100 tokens at 10 ms, 200 streams", 100, 200, 200, delay_ms=10, ramp_up_seconds=1.0),
    Workload(
        "paced: 100 tokens at 10 ms, 500 streams", 100, 500, 500, delay_ms=10, ramp_up_seconds=1.0, only=("gateway",)
    ),
    Workload("plain: 10 tokens in one answer, 32 at once", 10, 32, 320, stream=False),
    Workload("tool call, then 100 tokens, 1 at once", 100, 1, 30, tool=True),
    Workload("tool call, then 100 tokens, 16 at once", 100, 16, 96, tool=True),
    Workload(
        "idle: 3 tokens at 2 s, 1,000 streams", 3, 1000, 1000, delay_ms=2000, ramp_up_seconds=1.0, only=("gateway",)
    ),
)


@dataclass
class WorkloadResult:
    """Cost of a workload on one server, over all rounds."""

    workload: Workload
    subject: str
    server_seconds: float = 0.0
    postgres_seconds: float = 0.0
    resident_bytes: int = 0
    rounds: list[LoadStats] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(stats.requests for stats in self.rounds)

    @property
    def tokens(self) -> int:
        return sum(stats.tokens for stats in self.rounds)

    @property
    def errors(self) -> Counter[str]:
        return sum((stats.errors for stats in self.rounds), Counter())

    @property
    def cpu_us_per_token(self) -> float:
        return self.server_seconds / max(self.tokens, 1) * 1e6

    @property
    def cpu_ms_per_request(self) -> float:
        return self.server_seconds / max(self.requests, 1) * 1e3

    @property
    def postgres_ms_per_request(self) -> float:
        return self.postgres_seconds / max(self.requests, 1) * 1e3

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / sum(stats.duration_seconds for stats in self.rounds)

    def compute_first_token_ms(self, percent: float) -> float:
        """Return the median of the rounds."""
        values = [
            compute_percentile(stats.first_token_seconds or stats.request_seconds, percent) for stats in self.rounds
        ]
        return _compute_median(values) * 1e3

    def compute_gap_ms(self, percent: float) -> float:
        return _compute_median([stats.compute_gap_percentile(percent) for stats in self.rounds]) * 1e3


def _compute_median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


async def run_workload(workload: Workload, subject: Subject, result: WorkloadResult) -> None:
    """Warm up, run one round and add its figures to the result."""
    assert subject.process is not None
    request = workload.build_request(subject)
    total = max(workload.connections, int(workload.total * subject.load_share))
    if workload.delay_ms < 1000:
        connections, warm_up_total = min(workload.connections, 8), min(total, 16)
        await run_load(
            subject.port,
            request,
            tokens=workload.tokens,
            connections=connections,
            total=warm_up_total,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
    before = subject.process.measure_usage()
    async with _track_peak_memory(subject.process) as peak:
        stats = await run_load(
            subject.port,
            request,
            tokens=workload.tokens,
            connections=workload.connections,
            total=total,
            ramp_up_seconds=workload.ramp_up_seconds,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
    await asyncio.sleep(0.1)  # turns finish some work after their answers
    after = subject.process.measure_usage()
    result.server_seconds += after.server_seconds - before.server_seconds
    result.postgres_seconds += after.postgres_seconds - before.postgres_seconds
    result.resident_bytes = max(result.resident_bytes, peak.resident_bytes, after.resident_bytes)
    result.rounds.append(stats)


class _PeakMemory:
    """Peak of the resident memory of a server, sampled."""

    def __init__(self, process: ServerProcess) -> None:
        self.resident_bytes = 0
        self._pids = process.list_server_pids()

    async def sample_forever(self) -> None:
        while True:
            self.resident_bytes = max(self.resident_bytes, measure_resident_bytes(self._pids))
            await asyncio.sleep(_SAMPLE_SECONDS)


@contextlib.asynccontextmanager
async def _track_peak_memory(process: ServerProcess) -> AsyncGenerator[_PeakMemory]:
    peak = _PeakMemory(process)
    sampling = asyncio.create_task(peak.sample_forever())
    try:
        yield peak
    finally:
        sampling.cancel()
