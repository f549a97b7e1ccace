"""The counts at the end of a chaos run."""

import asyncio
import json
from collections import Counter
from typing import Any

from tests.chaos.clients import ENDS, ChaosClients, ShownTurn
from tests.chaos.faults import ChaosFaults
from tests.chaos.stack import ChaosProcess, ChaosStack

_POLL_SECONDS = 1.0
_SAMPLE_SECONDS = 60.0
_GRACE_SECONDS = 60.0


async def measure_memory(stack: ChaosStack, warm_seconds: float) -> None:
    """Note the memory of each worker process.

    The first value follows some time after the start.
    """
    started: dict[str, tuple[int, float]] = {}
    loop = asyncio.get_running_loop()
    while True:
        for worker in stack.workers:
            starts, since = started.get(worker.name, (0, 0.0))
            if starts != worker.starts:
                started[worker.name] = (worker.starts, loop.time())
            elif loop.time() - since > warm_seconds + _SAMPLE_SECONDS * len(worker.samples):
                size = worker.measure_bytes()
                worker.samples.append(size or 0)
                worker.warm_bytes = worker.warm_bytes or size
        await asyncio.sleep(_POLL_SECONDS)


class ChaosReport:
    """Counts broken promises in the database and at the clients."""

    def __init__(self, stack: ChaosStack, clients: ChaosClients, faults: ChaosFaults, *, has_small_disk: bool) -> None:
        self._stack = stack
        self._clients = clients
        self._faults = faults
        self._has_small_disk = has_small_disk

    async def print(self) -> int:
        """Print the counts; return the exit code."""
        unfinished = await self._wait_for_unfinished()
        connection = await self._stack.connect()
        try:
            statuses = await connection.fetch(
                "SELECT status, error->>'code' AS code, count(*) AS turns FROM turns GROUP BY 1, 2 ORDER BY 1, 2"
            )
            lost = [problem for turn in self._clients.turns if (problem := await _find_loss(connection, turn))]
        finally:
            await connection.close()
        hung = self._clients.hung + sum(not turn.has_ended for turn in self._clients.turns)
        doubled = self._list_doubled()
        print(f"faults: {dict(sorted(self._faults.counts.items()))}")
        print(f"turns that do harm: {dict(sorted(self._clients.kinds.items()))}")
        if not self._has_small_disk:
            print("no disk was filled: this system does not allow mounts")
        print(f"turns shown to clients: {len(self._clients.turns)}; refused requests: {dict(self._clients.refusals)}")
        for row in statuses:
            code = f" with {row['code']}" if row["code"] else ""
            print(f"turns {row['status']}{code}: {row['turns']}")
        for worker in self._stack.workers:
            print(f"memory of {worker.name} ({worker.starts} starts): {_describe_memory(worker)}")
        for problem in lost[:20]:
            print(f"lost: {problem}")
        print(f"doubled effects: {len(doubled)} {doubled[:20]}".rstrip(" []"))
        print(f"shown and lost texts: {len(lost)}")
        print(f"turns left unfinished: {unfinished}")
        print(f"streams hung: {hung}")
        ready = self._faults.ready_while_full
        print(f"workers ready while the disk was full: {ready} of {ready + self._faults.unready_while_full}")
        return int(bool(doubled or lost or unfinished or hung or ready))

    async def _wait_for_unfinished(self) -> int:
        """Count the turns that do not end in time."""
        deadline = asyncio.get_running_loop().time() + _GRACE_SECONDS
        while True:
            connection = await self._stack.connect()
            try:
                query = "SELECT count(*) FROM turns WHERE status IN ('running', 'waiting')"
                count = int(await connection.fetchval(query))
            finally:
                await connection.close()
            if not count or asyncio.get_running_loop().time() > deadline:
                return count
            await asyncio.sleep(_POLL_SECONDS)

    def _list_doubled(self) -> list[str]:
        file = self._stack.effects_file
        orders = Counter(file.read_text().splitlines()) if file.exists() else Counter[str]()
        print(f"effects: {sum(orders.values())} of {len(orders)} orders")
        return [order for order, count in orders.items() if count > 1]


async def _find_loss(connection: Any, turn: ShownTurn) -> str | None:
    """Compare the events that a client was shown with the stored ones."""
    if turn.problem is not None:
        return f"turn {turn.turn_id}: {turn.problem}"
    row = await connection.fetchrow("SELECT response FROM turns WHERE id = $1::uuid", turn.turn_id)
    if row is None:
        return f"turn {turn.turn_id} is not stored"
    rows = await connection.fetch(
        "SELECT first_seq, payload FROM turn_events WHERE turn_id = $1::uuid ORDER BY first_seq", turn.turn_id
    )
    stored = {row["first_seq"] + n: line for row in rows for n, line in enumerate(row["payload"].split("\n"))}
    for event in turn.events:
        if event.type not in ("text.delta", "reasoning.delta"):
            line = stored.get(event.id or 0)
            if line is None or json.loads(line)["type"] != event.type:
                return f"turn {turn.turn_id}: {event.type} {event.id} was shown, but is not stored"
    ends = [number for number, line in stored.items() if json.loads(line)["type"] in ENDS]
    if turn.has_ended and ends != [max(stored)]:
        return f"turn {turn.turn_id}: the ends are {ends} of {max(stored)}"
    if turn.has_ended and turn.assemble_text() != (row["response"] or ""):
        return f"turn {turn.turn_id}: {turn.assemble_text()!r:.200} was shown, {row['response']!r:.200} is stored"
    return None


def _describe_memory(worker: ChaosProcess) -> str:
    end = worker.measure_bytes()
    return " ".join(["?" if not size else f"{size / 1_048_576:.0f}" for size in (*worker.samples, end)]) + " MB"
