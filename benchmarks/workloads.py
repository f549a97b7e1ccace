"""The loads that all contestants are put under, and one such run."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from benchmarks.load import Figures, percentile, put
from benchmarks.processes import Process, resident
from benchmarks.subjects import Contestant
from benchmarks.upstream import prompt

_SAMPLE_SECONDS = 0.2
_PATIENCE = 90.0


@dataclass(frozen=True)
class Workload:
    """`total` requests over `connections`, opened within `over` seconds; `only`: the contestants that it is for."""

    name: str
    tokens: int
    connections: int
    total: int
    delay_ms: int = 0
    stream: bool = True
    tool: bool = False
    tools_offered: bool = False
    over: float = 0.0
    only: tuple[str, ...] = ()

    def suits(self, contestant: Contestant) -> bool:
        return (contestant.tool_turns or not self.tool) and (not self.only or contestant.name in self.only)

    def request(self, contestant: Contestant) -> bytes:
        question = prompt(self.tokens, self.delay_ms, tool=self.tool)
        return contestant.request(question, stream=self.stream, tools=self.tool or self.tools_offered)


FULL = (
    Workload("burst: 200 tokens, 1 stream", 200, 1, 100),
    Workload("burst: 200 tokens, 32 streams", 200, 32, 640),
    Workload("burst: 200 tokens, 128 streams", 200, 128, 768),
    Workload("the same, 32 streams, all tools on offer", 200, 32, 640, tools_offered=True, only=("gateway",)),
    Workload("paced: 100 tokens at 10 ms, 200 streams", 100, 200, 600, delay_ms=10, over=1.0),
    Workload("paced: 100 tokens at 10 ms, 500 streams", 100, 500, 1000, delay_ms=10, over=1.0),
    Workload("plain: 10 tokens in one answer, 32 at once", 10, 32, 640, stream=False),
    Workload("tool call, then 100 tokens, 1 at once", 100, 1, 60, tool=True),
    Workload("tool call, then 100 tokens, 16 at once", 100, 16, 240, tool=True),
    Workload("idle: 3 tokens at 5 s, 1,000 streams", 3, 1000, 1000, delay_ms=5000, over=2.0),
)
QUICK = (
    Workload("burst: 200 tokens, 1 stream", 200, 1, 60),
    Workload("burst: 200 tokens, 32 streams", 200, 32, 320),
    Workload("burst: 200 tokens, 128 streams", 200, 128, 256, only=("gateway", "relay")),
    Workload("paced: 100 tokens at 10 ms, 200 streams", 100, 200, 200, delay_ms=10, over=1.0),
    Workload("paced: 100 tokens at 10 ms, 500 streams", 100, 500, 500, delay_ms=10, over=1.0, only=("gateway",)),
    Workload("plain: 10 tokens in one answer, 32 at once", 10, 32, 320, stream=False),
    Workload("tool call, then 100 tokens, 1 at once", 100, 1, 30, tool=True),
    Workload("tool call, then 100 tokens, 16 at once", 100, 16, 96, tool=True),
    Workload("idle: 3 tokens at 2 s, 1,000 streams", 3, 1000, 1000, delay_ms=2000, over=1.0, only=("gateway",)),
)


@dataclass
class Result:
    """What a workload cost a contestant, over all rounds."""

    workload: Workload
    contestant: str
    server: float = 0.0
    postgres: float = 0.0
    resident: int = 0
    rounds: list[Figures] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(figures.requests for figures in self.rounds)

    @property
    def tokens(self) -> int:
        return sum(figures.tokens for figures in self.rounds)

    @property
    def errors(self) -> Counter[str]:
        return sum((figures.errors for figures in self.rounds), Counter())

    @property
    def token_us(self) -> float:
        return self.server / max(self.tokens, 1) * 1e6

    @property
    def request_ms(self) -> float:
        return self.server / max(self.requests, 1) * 1e3

    @property
    def postgres_ms(self) -> float:
        return self.postgres / max(self.requests, 1) * 1e3

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / sum(figures.seconds for figures in self.rounds)

    def first_ms(self, share: float) -> float:
        """The median of the rounds."""
        return _median([percentile(figures.first or figures.whole, share) for figures in self.rounds]) * 1e3

    def gap_ms(self, share: float) -> float:
        return _median([figures.gap(share) for figures in self.rounds]) * 1e3


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


async def run(workload: Workload, contestant: Contestant, into: Result) -> None:
    """One round: warmed up, then weighed."""
    assert contestant.process is not None
    request = workload.request(contestant)
    total = max(workload.connections, int(workload.total * contestant.share))
    if workload.delay_ms < 1000:
        await put(
            contestant.port, request, tokens=workload.tokens, connections=min(workload.connections, 8),
            total=min(total, 16), patience=_PATIENCE,
        )  # fmt: skip
    before = contestant.process.weigh()
    async with _peak(contestant.process) as peak:
        figures = await put(
            contestant.port, request, tokens=workload.tokens, connections=workload.connections, total=total,
            over=workload.over, patience=_PATIENCE,
        )  # fmt: skip
    await asyncio.sleep(0.1)  # what a turn leaves to be done after its answer
    after = contestant.process.weigh()
    into.server += after.server - before.server
    into.postgres += after.postgres - before.postgres
    into.resident = max(into.resident, peak.resident, after.resident)
    into.rounds.append(figures)


class _Peak:
    def __init__(self, process: Process) -> None:
        self.resident = 0
        self._pids = process.server_pids()

    async def watch(self) -> None:
        while True:
            self.resident = max(self.resident, resident(self._pids))
            await asyncio.sleep(_SAMPLE_SECONDS)


@contextlib.asynccontextmanager
async def _peak(process: Process) -> AsyncGenerator[_Peak]:
    peak = _Peak(process)
    watching = asyncio.create_task(peak.watch())
    try:
        yield peak
    finally:
        watching.cancel()
