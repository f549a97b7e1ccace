"""`python -m benchmarks.scaling --users 10000`: what a load needs by the measured costs, and where it first stops.

The costs are those of `costs.json`, made by `python -m benchmarks.costs`; all else is an assumption with a name, see
`--help`.
"""

import argparse
import math
from dataclasses import dataclass, fields, replace

from benchmarks.costs import Costs, load

_DELTA_COMMITS = 20.0
_REDIS_CALLS_A_REQUEST, _REDIS_CALLS_A_MODEL_CALL = 4, 2


@dataclass(frozen=True)
class Load:
    """People who chat: each so often in the busiest hour, and on a day. `text_kb`: of a prompt and its answer."""

    users: int = 1000
    turns_an_hour: float = 12.0
    turns_a_day: float = 30.0
    tokens: float = 300.0
    tokens_a_second: float = 100.0
    first_token_seconds: float = 0.5
    tool_calls: float = 0.5
    tool_seconds: float = 0.5
    text_kb: float = 2.0
    journal_days: float = 30.0


@dataclass(frozen=True)
class Machine:
    """One machine with everything on it. `use`: the share of a core that may be busy before answers become late."""

    cores: int = 8
    memory_gb: float = 32.0
    connections: int = 200
    files: int = 65_536
    commit_ms: float = 2.0
    disk_gb: float = 1000.0
    use: float = 0.6


@dataclass(frozen=True)
class Need:
    """How much of something a load needs, how much a machine has, and what is done when that is not enough."""

    what: str
    needed: float
    has: float
    then: str

    @property
    def share(self) -> float:
        return self.needed / self.has


@dataclass(frozen=True)
class Plan:
    turns: float
    streams: float
    workers: int
    redis: float
    gb_a_day: float
    gb_of_journal: float
    days: float
    needs: list[Need]

    @property
    def first(self) -> Need:
        """What there is the least of."""
        return max(self.needs, key=lambda need: need.share)


def plan(costs: Costs, of: Load, machine: Machine) -> Plan:
    """What the load needs of one such machine."""
    turns = of.users * of.turns_an_hour / 3600
    calls = 1 + of.tool_calls
    seconds = calls * of.first_token_seconds + of.tokens / of.tokens_a_second + of.tool_calls * of.tool_seconds
    streams = turns * seconds
    gateway = (
        turns * (costs.turn_ms + of.tokens * costs.paced_token_us / 1e3 + of.tool_calls * costs.tool_call_ms) / 1e3
    )
    journal = (costs.postgres_paced_turn_ms - costs.postgres_turn_ms) * of.tokens / 100
    postgres = turns * (costs.postgres_turn_ms + max(journal, 0) + of.tool_calls * costs.postgres_tool_call_ms) / 1e3
    workers = max(1, math.ceil(gateway / machine.use))
    deltas = min(workers, streams) * _DELTA_COMMITS
    commits = turns * (costs.commits_alone + of.tool_calls * costs.commits_tool_call) + deltas
    memory = (workers * costs.worker_mb + streams * costs.stream_kb / 1e3) / 1e3
    kept_kb = costs.turn_kb + of.text_kb * costs.bytes_a_text_byte + of.tool_calls * costs.tool_call_kb
    journal_kb = costs.journal_kb * of.tokens / 100
    gb_a_day = of.users * of.turns_a_day * kept_kb / 1e6
    gb_of_journal = of.users * of.turns_a_day * journal_kb * of.journal_days / 1e6
    days = max(0.0, machine.disk_gb - gb_of_journal) / gb_a_day if gb_a_day else math.inf
    files = costs.worker_files + streams / workers * costs.stream_files
    needs = [
        Need(
            "cores", gateway + postgres, machine.cores * machine.use, "Postgres on its own machine, then more replicas"
        ),
        Need("memory, GB", memory, machine.memory_gb / 2, "more machines; half is left to Postgres and the system"),
        Need("connections to Postgres", workers * costs.worker_connections_most, machine.connections, "a pooler"),
        Need("open files of a worker", files, machine.files, "more workers"),
        # One commit at a time a worker, so this many is what they come to when each waits for its own.
        Need(
            "commits a second", commits, workers * 1000 / machine.commit_ms, "they wait for each other, and go together"
        ),
    ]
    redis = turns * (_REDIS_CALLS_A_REQUEST + calls * _REDIS_CALLS_A_MODEL_CALL) if workers > 1 else 0.0
    return Plan(turns, streams, workers, redis, gb_a_day, gb_of_journal, days, needs)


def stop(costs: Costs, of: Load, machine: Machine) -> tuple[int, Need]:
    """With how many users such a machine has not enough of something any more, and of what."""
    users = 1
    while (first := plan(costs, replace(of, users=users), machine).first).share <= 1:
        users += max(1, users // 50)
    return users, first


def report(costs: Costs, of: Load, machine: Machine) -> str:
    """The plan as lines for people."""
    found = plan(costs, of, machine)
    lines = [
        f"{of.users:,} users, {found.turns:,.1f} turns a second, {found.streams:,.0f} streams at once",
        f"{found.workers} workers, {found.redis:,.0f} calls a second to Redis",
        f"{found.gb_a_day:,.2f} GB more a day, {found.gb_of_journal:,.1f} GB of journal",
        f"{machine.disk_gb:,.0f} GB are full after {found.days:,.0f} days",
        f"{'':26}{'needed':>12}{'one machine':>13}  share",
    ]
    lines += [f"{need.what:26}{need.needed:>12,.1f}{need.has:>13,.0f}{need.share:>7.0%}" for need in found.needs]
    users, first = stop(costs, of, machine)
    lines.append(f"where it stops: about {users:,} users, for want of {first.what}: {first.then}")
    return "\n".join(lines)


def examples(costs: Costs) -> str:
    """Two loads, as the page shows them."""
    shown = [
        f"$ python -m benchmarks.scaling --users {users}\n{report(costs, Load(users), Machine())}"
        for users in (1_000, 10_000)
    ]
    return "```console\n" + "\n\n".join(shown) + "\n```"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    groups = {Load: parser.add_argument_group("the load"), Machine: parser.add_argument_group("the machine")}
    for kind, group in groups.items():
        for field in fields(kind):
            flag = f"--{field.name.replace('_', '-')}"
            group.add_argument(flag, type=type(field.default), default=field.default, help=f"{field.default:g}")
    given = vars(parser.parse_args(arguments))
    of = Load(**{field.name: given[field.name] for field in fields(Load)})
    machine = Machine(**{field.name: given[field.name] for field in fields(Machine)})
    print(report(load(), of, machine))


if __name__ == "__main__":
    main()
