"""What only the gateway does: search and history over many turns, many followers of one turn; how fast it starts."""

import asyncio
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from benchmarks.load import Figures, percentile, put
from benchmarks.processes import cpu_seconds, held
from benchmarks.subjects import Contestant, Gateway, Surroundings, Up, Workers, get
from benchmarks.upstream import prompt
from gateway.store.database import plain_dsn
from gateway_runtime import embedded_postgres

TURNS = 100_000
FOLLOWERS = 100
_SHARE = 0.25
_FOLLOWED_TOKENS, _FOLLOWED_DELAY_MS = 100, 20

# Twelve words a prompt and forty an answer, out of 4,096: each is in about one turn of eighty; `common` is in all.
_INSERT = """
INSERT INTO turns (id, owner, status, prompt, response, messages, model_name, parameters, options)
SELECT uuidv7(), 'local', 'completed', 'common ' || words(n, 12), words(-n, 40), '[]', 'bench', '{}', '{}'
FROM generate_series(1, $1::int) AS n"""
_WORDS = """
CREATE FUNCTION pg_temp.words(seed int, number int) RETURNS text LANGUAGE sql AS $$
    SELECT string_agg('w' || left(md5(seed || ' ' || i), 3), ' ') FROM generate_series(1, number) AS i $$"""


@dataclass(frozen=True)
class Line:
    """A figure for people: what, how much, and what was to be reached."""

    what: str
    figure: str
    target: str = ""


async def history_and_search(gateway: Gateway, requests: int) -> list[Line]:
    """Inserts the turns first."""
    server = embedded_postgres.find_cluster(gateway.data)
    connection = await asyncpg.connect(plain_dsn(server.build_url()))
    try:
        await connection.execute(_WORDS)
        await connection.execute(_INSERT.replace(" words(", " pg_temp.words("), TURNS)
        await connection.execute("VACUUM ANALYZE turns")
    finally:
        await connection.close()
    pick = random.Random(1)
    word = lambda: f"w{pick.randrange(4096):03x}"  # noqa: E731
    queries = {
        "search, two words": (lambda: get(f"/api/v1/search?query={word()}+{word()}"), "p99 20 ms"),
        "search, one word (in one turn of eighty)": (lambda: get(f"/api/v1/search?query={word()}"), "p99 20 ms"),
        "search, a word that is in every turn": (lambda: get("/api/v1/search?query=common"), "p99 20 ms"),
        "history, the newest 50": (lambda: get("/api/v1/history"), ""),
    }
    lines: list[Line] = []
    for what, (request, target) in queries.items():
        lines.append(await _asked(gateway, f"{what}, over {TURNS:,} turns", request, requests, target))
    return lines


async def _asked(gateway: Gateway, what: str, request: Callable[[], bytes], number: int, target: str) -> Line:
    assert gateway.process is not None
    await put(gateway.port, request, tokens=0, connections=1, total=3)
    before = gateway.process.weigh()
    figures = await put(gateway.port, request, tokens=0, connections=1, total=number)
    after = gateway.process.weigh()
    cpu = (after.server - before.server) / number * 1e3
    postgres = (after.postgres - before.postgres) / number * 1e3
    p50, p99 = (percentile(figures.whole, share) * 1e3 for share in (50, 99))
    told = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, CPU {cpu:.1f} ms + {postgres:.1f} ms Postgres"
    return Line(what, told + _problems(figures), target)


async def followers(gateway: Gateway) -> Line:
    """One turn, its own client and a hundred who read along."""
    assert gateway.process is not None
    begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def heard(head: bytes) -> None:
        turn_id = head.lower().split(b"x-turn-id: ", 1)[1].split(b"\r\n", 1)[0]
        begun.set_result(turn_id.decode())

    tokens = _FOLLOWED_TOKENS
    request = gateway.request(prompt(tokens, _FOLLOWED_DELAY_MS))
    before = gateway.process.weigh()
    owner = asyncio.create_task(put(gateway.port, request, tokens=tokens, connections=1, on_head=heard))
    turn_id = await asyncio.wait_for(begun, 10)
    follow = get(f"/api/v1/turns/{turn_id}/events")
    figures = await put(gateway.port, follow, tokens=tokens, connections=FOLLOWERS)
    own = await owner
    after = gateway.process.weigh()
    delivered = figures.tokens + own.tokens
    cost = (after.server - before.server) / delivered * 1e6
    told = f"{cost:.1f} µs CPU a token and reader, between tokens p99 {figures.gap(99) * 1e3:.1f} ms"
    return Line(
        f"follow one turn ({tokens} tokens at {_FOLLOWED_DELAY_MS} ms), {FOLLOWERS} followers",
        told + _problems(figures),
    )


async def workers(around: Surroundings, rounds: int) -> list[Line]:
    """One worker and two, under the same burst in turn: as fast as it goes here, and with a quarter of a core for each.

    On two cores the load, the upstream and Postgres take what the second worker would need: only where each worker is
    held to less than the machine has does the throughput show what a second one adds.
    """
    one, two = Workers(around, 1), Workers(around, 2)
    free: list[tuple[_Burst, _Burst]] = []
    slowed: dict[int, list[tuple[_Burst, _Burst]]] = {32: [], 128: []}
    try:
        for contestant in (one, two):
            await contestant.start()
            await _burst(contestant, 32, 64)
        for _ in range(rounds):
            free.append((await _burst(one, 32, 640), await _burst(two, 32, 640)))
            for streams, both in slowed.items():
                with held(_SHARE, one.workers()):
                    first = await _burst(one, streams, 384)
                with held(_SHARE, two.workers()):
                    both.append((first, await _burst(two, streams, 768)))
    finally:
        one.stop()
        two.stop()
    what = "burst: 200 tokens, {} streams, two workers against one, {}"
    apart = f"each with {_SHARE:.0%} of a core"
    return [
        _compared(what.format(32, "sharing two cores with all else"), free, ""),
        _compared(what.format(32, apart), slowed[32], ""),
        _compared(what.format(128, apart), slowed[128], "1.8 times"),
    ]


@dataclass(frozen=True)
class _Burst:
    figures: Figures
    cpu: list[float]

    @property
    def speed(self) -> float:
        return self.figures.tokens / self.figures.seconds

    @property
    def capacity(self) -> float:
        """Tokens a second, had each worker a core of its own and nobody to wait for."""
        return self.figures.tokens / max(self.cpu)


async def _burst(contestant: Workers, streams: int, number: int) -> _Burst:
    pids = contestant.workers()
    before = [cpu_seconds(pid)[0] for pid in pids]
    figures = await put(contestant.port, contestant.request(prompt(200)), tokens=200, connections=streams, total=number)
    return _Burst(figures, [cpu_seconds(pid)[0] - past for pid, past in zip(pids, before, strict=True)])


def _compared(what: str, rounds: list[tuple[_Burst, _Burst]], target: str) -> Line:
    """Medians of the rounds: the throughput, and what the CPU of the busier worker would allow."""
    one, two, ratio, allowed = (
        sorted(values)[len(rounds) // 2]
        for values in (
            [first.speed for first, _ in rounds],
            [second.speed for _, second in rounds],
            [second.speed / first.speed for first, second in rounds],
            [second.capacity / first.capacity for first, second in rounds],
        )
    )
    told = f"{two:,.0f} against {one:,.0f} tokens/s: {ratio:.2f} times; by the CPU of the busier worker {allowed:.2f}"
    return Line(what, told + "".join(_problems(burst.figures) for pair in rounds for burst in pair), target)


def _problems(figures: Figures) -> str:
    return "".join(f"; {reason}: {number}" for reason, number in figures.errors.items())


async def start_up(gateway: Gateway, up: Up, times: int) -> list[Line]:
    """From the command to `/ready`; leaves the gateway running."""
    lines: list[Line] = []
    for contestant, what, target in ((up, "`make run`", "3 s"), (gateway, "`agent-gateway serve`", "3 s")):
        await contestant.start()
        first = contestant.ready_seconds
        seconds = array("d")
        cpu = array("d")
        for _ in range(times):
            contestant.stop()
            await contestant.start()
            seconds.append(contestant.ready_seconds)
            cpu.append(_cpu(contestant))
        told = (
            f"ready in {percentile(seconds, 50):.1f} s, CPU {percentile(cpu, 50):.1f} s; the first time {first:.1f} s"
        )
        lines.append(Line(f"{what}, to `/ready`", told, target))
    up.stop()
    return lines


def _cpu(contestant: Contestant) -> float:
    assert contestant.process is not None
    weight = contestant.process.weigh()
    return weight.server + weight.postgres
