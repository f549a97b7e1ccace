"""Measurements of the gateway alone.

Search, history, followers of a turn, workers, start-up.
"""

import asyncio
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from benchmarks.load import LoadStats, compute_percentile, run_load
from benchmarks.processes import limit_cpu_share, read_cpu_seconds
from benchmarks.subjects import Gateway, GatewayWorkers, SharedServers, Subject, UpCommand, build_get_request
from benchmarks.upstream import build_prompt
from gateway_runtime import embedded_postgres
from gateway_runtime.postgres.url import plain_dsn

TURN_COUNT = 100_000
FOLLOWER_COUNT = 100
_CPU_SHARE = 0.25
_FOLLOWED_TOKENS, _FOLLOWED_DELAY_MS = 100, 20

# Prompts have 12 and answers 40 of 4,096 words, so a word is in about one turn of eighty; `common` is in every turn.
_INSERT = """
INSERT INTO turns (id, owner, status, prompt, response, messages, model_name, parameters, options)
SELECT uuidv7(), 'local', 'completed', 'common ' || words(n, 12), words(-n, 40), '[]', 'bench', '{}', '{}'
FROM generate_series(1, $1::int) AS n"""
WORDS = """
CREATE FUNCTION pg_temp.words(seed int, number int) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg('w' || left(md5(seed || ' ' || i), 3), ' ') FROM generate_series(1, number) AS i $$"""


@dataclass(frozen=True)
class SummaryLine:
    """A figure of the report, with its target."""

    label: str
    figure: str
    target: str = ""


async def measure_history_and_search(gateway: Gateway, requests: int) -> list[SummaryLine]:
    """Insert turns, then measure search and history over them."""
    server = embedded_postgres.find_cluster(gateway.data_dir)
    connection = await asyncpg.connect(plain_dsn(server.build_url()))
    try:
        await connection.execute(WORDS)
        await connection.execute(_INSERT.replace(" words(", " pg_temp.words("), TURN_COUNT)
        await connection.execute("VACUUM ANALYZE turns")
    finally:
        await connection.close()
    generator = random.Random(1)

    def build_search_request(words: int) -> bytes:
        return build_get_request("/api/v1/search?query=" + "+".join(_pick_word(generator) for _ in range(words)))

    requests_by_label: dict[str, tuple[Callable[[], bytes], str]] = {
        "search, two words": (lambda: build_search_request(2), "p99 20 ms"),
        "search, one word (in one turn of eighty)": (lambda: build_search_request(1), "p99 20 ms"),
        "search, a word that is in every turn": (lambda: build_get_request("/api/v1/search?query=common"), "p99 20 ms"),
        "history, the newest 50": (lambda: build_get_request("/api/v1/history"), ""),
    }
    lines: list[SummaryLine] = []
    for label, (build_request, target) in requests_by_label.items():
        label_with_size = f"{label}, over {TURN_COUNT:,} turns"
        lines.append(await _measure_requests(gateway, label_with_size, build_request, requests, target))
    return lines


def _pick_word(generator: random.Random) -> str:
    return f"w{generator.randrange(4096):03x}"


async def _measure_requests(
    gateway: Gateway, label: str, request: Callable[[], bytes], number: int, target: str
) -> SummaryLine:
    assert gateway.process is not None
    await run_load(gateway.port, request, tokens=0, connections=1, total=3)
    before = gateway.process.measure_usage()
    stats = await run_load(gateway.port, request, tokens=0, connections=1, total=number)
    after = gateway.process.measure_usage()
    cpu = (after.server_seconds - before.server_seconds) / number * 1e3
    postgres = (after.postgres_seconds - before.postgres_seconds) / number * 1e3
    p50, p99 = (compute_percentile(stats.request_seconds, percent) * 1e3 for percent in (50, 99))
    figure = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, CPU {cpu:.1f} ms + {postgres:.1f} ms Postgres"
    return SummaryLine(label, figure + _format_errors(stats), target)


async def measure_followers(gateway: Gateway) -> SummaryLine:
    """Measure one turn with its own client and many followers."""
    assert gateway.process is not None
    turn_started: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def read_turn_id(head: bytes) -> None:
        turn_id = head.lower().split(b"x-turn-id: ", 1)[1].split(b"\r\n", 1)[0]
        turn_started.set_result(turn_id.decode())

    tokens = _FOLLOWED_TOKENS
    request = gateway.build_request(build_prompt(tokens, _FOLLOWED_DELAY_MS))
    before = gateway.process.measure_usage()
    owner = asyncio.create_task(run_load(gateway.port, request, tokens=tokens, connections=1, on_head=read_turn_id))
    turn_id = await asyncio.wait_for(turn_started, 10)
    follow = build_get_request(f"/api/v1/turns/{turn_id}/events")
    stats = await run_load(gateway.port, follow, tokens=tokens, connections=FOLLOWER_COUNT)
    owner_stats = await owner
    after = gateway.process.measure_usage()
    delivered = stats.tokens + owner_stats.tokens
    cost = (after.server_seconds - before.server_seconds) / delivered * 1e6
    figure = (
        f"{cost:.1f} µs CPU per token and reader, between tokens p99 {stats.compute_gap_percentile(99) * 1e3:.1f} ms"
    )
    return SummaryLine(
        f"follow one turn ({tokens} tokens at {_FOLLOWED_DELAY_MS} ms), {FOLLOWER_COUNT} followers",
        figure + _format_errors(stats),
    )


async def compare_worker_counts(shared: SharedServers, rounds: int) -> list[SummaryLine]:
    """Compare one worker with two, without and with CPU limits.

    On two cores, load generator, upstream and Postgres need the CPU time that a second worker would use. Only with a
    limit does the throughput show what a second worker adds.
    """
    one, two = GatewayWorkers(shared, 1), GatewayWorkers(shared, 2)
    unlimited: list[tuple[_Burst, _Burst]] = []
    limited: dict[int, list[tuple[_Burst, _Burst]]] = {32: [], 128: []}
    try:
        for subject in (one, two):
            await subject.start()
            await _run_burst(subject, 32, 64)
        for _ in range(rounds):
            unlimited.append((await _run_burst(one, 32, 640), await _run_burst(two, 32, 640)))
            for streams, pairs in limited.items():
                with limit_cpu_share(_CPU_SHARE, one.list_worker_pids()):
                    first = await _run_burst(one, streams, 384)
                with limit_cpu_share(_CPU_SHARE, two.list_worker_pids()):
                    pairs.append((first, await _run_burst(two, streams, 768)))
    finally:
        one.stop()
        two.stop()
    label = "burst: 200 tokens, {} streams, two workers against one, {}"
    limited_label = f"each limited to {_CPU_SHARE:.0%} of a core"
    return [
        _compare_bursts(label.format(32, "without limits"), unlimited, ""),
        _compare_bursts(label.format(32, limited_label), limited[32], ""),
        _compare_bursts(label.format(128, limited_label), limited[128], "1.8 times"),
    ]


@dataclass(frozen=True)
class _Burst:
    stats: LoadStats
    cpu: list[float]

    @property
    def tokens_per_second(self) -> float:
        return self.stats.tokens / self.stats.duration_seconds

    @property
    def tokens_per_cpu_second(self) -> float:
        """Tokens per CPU second of the busier worker."""
        return self.stats.tokens / max(self.cpu)


async def _run_burst(subject: GatewayWorkers, streams: int, number: int) -> _Burst:
    pids = subject.list_worker_pids()
    before = [read_cpu_seconds(pid)[0] for pid in pids]
    stats = await run_load(
        subject.port, subject.build_request(build_prompt(200)), tokens=200, connections=streams, total=number
    )
    return _Burst(stats, [read_cpu_seconds(pid)[0] - earlier for pid, earlier in zip(pids, before, strict=True)])


def _compare_bursts(label: str, rounds: list[tuple[_Burst, _Burst]], target: str) -> SummaryLine:
    """Compare the medians of the rounds.

    The figures are throughput, and tokens per CPU second of the busier worker.
    """
    one, two, ratio, cpu_ratio = (
        sorted(values)[len(rounds) // 2]
        for values in (
            [first.tokens_per_second for first, _ in rounds],
            [second.tokens_per_second for _, second in rounds],
            [second.tokens_per_second / first.tokens_per_second for first, second in rounds],
            [second.tokens_per_cpu_second / first.tokens_per_cpu_second for first, second in rounds],
        )
    )
    figure = (
        f"{two:,.0f} against {one:,.0f} tokens/s: {ratio:.2f} times; by CPU time of the busier worker {cpu_ratio:.2f}"
    )
    return SummaryLine(
        label, figure + "".join(_format_errors(burst.stats) for pair in rounds for burst in pair), target
    )


def _format_errors(stats: LoadStats) -> str:
    return "".join(f"; {reason}: {number}" for reason, number in stats.errors.items())


async def measure_start_up(gateway: Gateway, up: UpCommand, times: int) -> list[SummaryLine]:
    """Measure the time from the command to `/ready`. The gateway keeps running."""
    lines: list[SummaryLine] = []
    for subject, command, target in ((up, "`make run`", "3 s"), (gateway, "`agent-gateway serve`", "3 s")):
        await subject.start()
        first = subject.ready_seconds
        seconds = array("d")
        cpu = array("d")
        for _ in range(times):
            subject.stop()
            await subject.start()
            seconds.append(subject.ready_seconds)
            cpu.append(_measure_cpu_seconds(subject))
        median_seconds, median_cpu = compute_percentile(seconds, 50), compute_percentile(cpu, 50)
        figure = f"ready in {median_seconds:.1f} s, CPU {median_cpu:.1f} s; first start {first:.1f} s"
        lines.append(SummaryLine(f"{command}, to `/ready`", figure, target))
    up.stop()
    return lines


def _measure_cpu_seconds(subject: Subject) -> float:
    assert subject.process is not None
    usage = subject.process.measure_usage()
    return usage.server_seconds + usage.postgres_seconds
