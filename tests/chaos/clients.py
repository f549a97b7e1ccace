"""Clients that start turns and reconnect until these end.

They remember the events that they were shown.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.chaos.stack import ChaosStack
from tests.stack import Event, Stream

ENDS = ("turn.completed", "turn.failed", "turn.cancelled")
HUNG_SECONDS = 90.0
"""Time after which a stream with pings only is hung.

It is several times what a takeover takes.
"""
_SILENCE_SECONDS = 25.0
"""Time without a ping after which a client reconnects."""
_PAUSE_SECONDS = 0.5
_DEADLY_EVERY, _MANY_EVERY, _HUGE_EVERY = 97, 61, 41
"""Number of turns from one turn of a kind to the next.

A deadly turn kills the workers that run it, one asks for too many calls, and one for a result near or over the limit.
"""
_MANY_CALLS = 140
_HUGE_KILOBYTES = (8000, 8100, 8300, 12_000)
"""Half the sizes of answers around the limit of 16 MiB."""


@dataclass
class ShownTurn:
    """A turn and the events that its client was shown."""

    turn_id: str
    events: list[Event] = field(default_factory=list)
    problem: str | None = None

    @property
    def last_id(self) -> int:
        return max((event.id or 0 for event in self.events), default=0)

    @property
    def has_ended(self) -> bool:
        return any(event.type in ENDS for event in self.events)

    def show(self, event: Event) -> None:
        if event.id is None:
            return
        if event.id <= self.last_id:
            self.problem = f"event {event.id} was shown after {self.last_id}"
        if self.has_ended:
            self.problem = f"event {event.id} was shown after the end"
        self.events.append(event)

    def assemble_text(self) -> str:
        """Assemble the text of the last step that has text.

        The rules of the events apply.
        """
        steps: dict[int, str] = {}
        for event in self.events:
            if event.type == "text.delta":
                steps[event.data["step"]] = steps.get(event.data["step"], "") + event.data["text"]
            elif event.type == "model.retry" and event.data["discard"]:
                steps.pop(event.data["step"], None)
        return next((steps[step] for step in sorted(steps, reverse=True) if steps[step]), "")


class ChaosClients:
    """Clients that run turns one after another."""

    def __init__(self, stack: ChaosStack, seed: int) -> None:
        self.turns: list[ShownTurn] = []
        self.refusals: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.hung = 0
        self.is_closing = False
        self._stack = stack
        self._random = random.Random(seed)
        self._orders = 0

    async def run(self, count: int) -> None:
        """Run so many clients until `is_closing`; each finishes its turn."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(self._run_turns())

    async def _run_turns(self) -> None:
        while not self.is_closing:
            turn = await self._start_turn()
            while turn is not None and not turn.has_ended:
                await asyncio.sleep(_PAUSE_SECONDS)
                await self._follow(turn)
            await asyncio.sleep(self._random.random())

    def _make_prompt(self) -> str:
        self._orders += 1
        if self._orders % _DEADLY_EVERY == 0:
            self.kinds["deadly turn"] += 1
            return "call kill_client {}"
        if self._orders % _MANY_EVERY == 0:
            self.kinds["many calls"] += 1
            calls = " and ".join(f'pay {{"order": "{self._orders}-{n}"}}' for n in range(_MANY_CALLS))
            return f"call in parallel {calls}"
        if self._orders % _HUGE_EVERY == 0:
            self.kinds["huge result"] += 1
            return f'call report {{"kilobytes": {self._random.choice(_HUGE_KILOBYTES)}}}'
        if self._orders % 2:
            return f"count to {self._random.randint(40, 160)}"
        calls = " then ".join(f'pay {{"order": "{self._orders}-{n}"}}' for n in range(self._random.randint(1, 3)))
        return f"call {calls}"

    def _pick_url(self) -> str:
        return self._random.choice(self._stack.workers).url

    async def _start_turn(self) -> ShownTurn | None:
        body = {"messages": [{"role": "user", "content": self._make_prompt()}], "on_disconnect": "continue"}
        turn: ShownTurn | None = None
        try:
            async with self._stack.session.post(f"{self._pick_url()}/api/v1/chat/stream", json=body) as response:
                if response.status != 200:
                    self.refusals[response.status] += 1
                    return None
                turn = ShownTurn(response.headers["x-turn-id"])
                self.turns.append(turn)
                await self._read(turn, response)
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            pass
        return turn

    async def _follow(self, turn: ShownTurn) -> None:
        url = f"{self._pick_url()}/api/v1/turns/{turn.turn_id}/events?after={turn.last_id}"
        try:
            async with self._stack.session.get(url) as response:
                if response.status == 200:
                    await self._read(turn, response)
                else:
                    self.refusals[response.status] += 1
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            pass

    async def _read(self, turn: ShownTurn, response: aiohttp.ClientResponse) -> None:
        """Read until the stream ends or is hung."""
        events = Stream(response).read_events()
        try:
            while True:
                try:
                    async with asyncio.timeout(HUNG_SECONDS):
                        event = await anext(events)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    self.hung += 1
                    print(f"hung: turn {turn.turn_id} after {turn.last_id}, {time.strftime('%X')}", flush=True)
                    return
                turn.show(event)
        finally:
            await events.aclose()


def create_session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENCE_SECONDS)
    options: dict[str, Any] = {"connector": aiohttp.TCPConnector(limit=0, force_close=True), "timeout": timeout}
    return aiohttp.ClientSession(**options)
