"""Calculate the resources of a load, and its first limit.

Run it as `python -m benchmarks.scaling --users 10000`. The costs are those of `costs.json`, written by `python -m
benchmarks.costs`; every other figure is an assumption, see `--help`.
"""

import argparse
import math
from dataclasses import dataclass, fields, replace

from benchmarks.costs import Costs, load_costs

_DELTA_COMMITS_PER_SECOND = 20.0
_REDIS_CALLS_PER_REQUEST, _REDIS_CALLS_PER_MODEL_CALL = 4, 2


@dataclass(frozen=True)
class LoadProfile:
    """Users who chat.

    Turns per hour are those of the busiest hour; `text_kb` is one prompt with its answer.
    """

    users: int = 1000
    turns_per_hour: float = 12.0
    turns_per_day: float = 30.0
    tokens: float = 300.0
    tokens_per_second: float = 100.0
    first_token_seconds: float = 0.5
    tool_calls: float = 0.5
    tool_seconds: float = 0.5
    text_kb: float = 2.0
    journal_days: float = 30.0


@dataclass(frozen=True)
class Machine:
    """A machine that runs everything.

    `max_core_use` is the share of a core that may be busy before answers are delayed.
    """

    cores: int = 8
    memory_gb: float = 32.0
    connections: int = 200
    files: int = 65_536
    commit_ms: float = 2.0
    disk_gb: float = 1000.0
    max_core_use: float = 0.6


@dataclass(frozen=True)
class ResourceNeed:
    """Demand for a resource, and what a machine has of it."""

    resource: str
    needed: float
    available: float
    remedy: str

    @property
    def share(self) -> float:
        return self.needed / self.available


@dataclass(frozen=True)
class Plan:
    """Resources that a load needs."""

    turns_per_second: float
    streams: float
    workers: int
    redis_calls_per_second: float
    gb_per_day: float
    journal_gb: float
    days_until_full: float
    needs: list[ResourceNeed]

    @property
    def tightest_need(self) -> ResourceNeed:
        """The resource with the largest used share."""
        return max(self.needs, key=lambda need: need.share)


def calculate_plan(costs: Costs, load: LoadProfile, machine: Machine) -> Plan:
    """Calculate what a load needs of a machine."""
    turns = load.users * load.turns_per_hour / 3600
    calls = 1 + load.tool_calls
    seconds = (
        calls * load.first_token_seconds + load.tokens / load.tokens_per_second + load.tool_calls * load.tool_seconds
    )
    streams = turns * seconds
    gateway = (
        turns * (costs.turn_ms + load.tokens * costs.paced_token_us / 1e3 + load.tool_calls * costs.tool_call_ms) / 1e3
    )
    journal = (costs.postgres_paced_turn_ms - costs.postgres_turn_ms) * load.tokens / 100
    postgres = turns * (costs.postgres_turn_ms + max(journal, 0) + load.tool_calls * costs.postgres_tool_call_ms) / 1e3
    workers = max(1, math.ceil(gateway / machine.max_core_use))
    deltas = min(workers, streams) * _DELTA_COMMITS_PER_SECOND
    commits = turns * (costs.commits_alone + load.tool_calls * costs.commits_tool_call) + deltas
    memory = (workers * costs.worker_mb + streams * costs.stream_kb / 1e3) / 1e3
    stored_kb = costs.turn_kb + load.text_kb * costs.bytes_per_text_byte + load.tool_calls * costs.tool_call_kb
    journal_kb = costs.journal_kb * load.tokens / 100
    gb_per_day = load.users * load.turns_per_day * stored_kb / 1e6
    journal_gb = load.users * load.turns_per_day * journal_kb * load.journal_days / 1e6
    days = max(0.0, machine.disk_gb - journal_gb) / gb_per_day if gb_per_day else math.inf
    files = costs.worker_files + streams / workers * costs.stream_files
    needs = [
        ResourceNeed(
            "cores",
            gateway + postgres,
            machine.cores * machine.max_core_use,
            "move Postgres to its own machine, then add replicas",
        ),
        ResourceNeed(
            "memory, GB",
            memory,
            machine.memory_gb / 2,
            "add machines; half of the memory is reserved for Postgres and the system",
        ),
        ResourceNeed(
            "connections to Postgres",
            workers * costs.max_worker_connections,
            machine.connections,
            "use a connection pooler",
        ),
        ResourceNeed("open files per worker", files, machine.files, "add workers"),
        # A worker commits once at a time, so this is the maximum without group commit.
        ResourceNeed(
            "commits per second",
            commits,
            workers * 1000 / machine.commit_ms,
            "none needed: waiting writes are committed together",
        ),
    ]
    redis = turns * (_REDIS_CALLS_PER_REQUEST + calls * _REDIS_CALLS_PER_MODEL_CALL) if workers > 1 else 0.0
    return Plan(turns, streams, workers, redis, gb_per_day, journal_gb, days, needs)


def find_user_limit(costs: Costs, load: LoadProfile, machine: Machine) -> tuple[int, ResourceNeed]:
    """Find the number of users that exhausts a resource, and the resource."""
    users = 1
    while (tightest := calculate_plan(costs, replace(load, users=users), machine).tightest_need).share <= 1:
        users += max(1, users // 50)
    return users, tightest


def format_report(costs: Costs, load: LoadProfile, machine: Machine) -> str:
    """Format a plan as text."""
    plan = calculate_plan(costs, load, machine)
    lines = [
        f"{load.users:,} users, {plan.turns_per_second:,.1f} turns per second, {plan.streams:,.0f} concurrent streams",
        f"{plan.workers} workers, {plan.redis_calls_per_second:,.0f} Redis calls per second",
        f"{plan.gb_per_day:,.2f} GB of new data per day, {plan.journal_gb:,.1f} GB of journal",
        f"{machine.disk_gb:,.0f} GB of disk are full after {plan.days_until_full:,.0f} days",
        f"{'':26}{'needed':>12}{'one machine':>13}  share",
    ]
    lines += [
        f"{need.resource:26}{need.needed:>12,.1f}{need.available:>13,.0f}{need.share:>7.0%}" for need in plan.needs
    ]
    users, tightest = find_user_limit(costs, load, machine)
    lines.append(f"limit: about {users:,} users, because of {tightest.resource}; remedy: {tightest.remedy}")
    return "\n".join(lines)


def format_examples(costs: Costs) -> str:
    """Format two loads for docs/scaling.md."""
    texts = [
        f"$ python -m benchmarks.scaling --users {users}\n{format_report(costs, LoadProfile(users), Machine())}"
        for users in (1_000, 10_000)
    ]
    return "```console\n" + "\n\n".join(texts) + "\n```"


_DESCRIPTION = (
    "Calculate the resources of a load, and its first limit. The costs are measured (`costs.json`); each option is an"
    " assumption."
)
_HELP = {
    "users": "users of the gateway",
    "turns_per_hour": "turns of a user in the busiest hour",
    "turns_per_day": "turns of a user per day",
    "tokens": "tokens of an answer",
    "tokens_per_second": "speed of the model",
    "first_token_seconds": "time until the model's first token",
    "tool_calls": "tool calls per turn",
    "tool_seconds": "duration of a tool call",
    "text_kb": "size of one prompt with its answer",
    "journal_days": "days for which events are stored",
    "cores": "cores of the machine",
    "memory_gb": "memory of the machine",
    "connections": "connections that Postgres accepts",
    "files": "files that a process may open",
    "commit_ms": "duration of a commit",
    "disk_gb": "size of the disk",
    "max_core_use": "share of a core that may be busy",
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=_DESCRIPTION)
    groups = {LoadProfile: parser.add_argument_group("load"), Machine: parser.add_argument_group("machine")}
    for kind, group in groups.items():
        for field in fields(kind):
            flag = f"--{field.name.replace('_', '-')}"
            group.add_argument(
                flag,
                type=type(field.default),
                default=field.default,
                help=f"{_HELP[field.name]} (default: {field.default:g})",
            )
    values = vars(parser.parse_args(arguments))
    load = LoadProfile(**{field.name: values[field.name] for field in fields(LoadProfile)})
    machine = Machine(**{field.name: values[field.name] for field in fields(Machine)})
    print(format_report(load_costs(), load, machine))


if __name__ == "__main__":
    main()
