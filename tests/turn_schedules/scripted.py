"""A model, tools and clients that a test steps."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from gateway.agent.service import TurnHandle, TurnService
from gateway.common.lease import WorkerLease
from gateway.domain import events as e
from gateway.domain.errors import GatewayError
from gateway.domain.events import JournalEntry, decode_event
from gateway.domain.messages import Principal, ToolCall, ToolResult, ToolSpec, Usage, text_block
from gateway.ports.model import Model, ModelAnswer, ModelCall, ModelSink
from gateway.ports.tools import ToolCallRequest

PRINCIPAL = Principal(user="local")
ENDS = (e.TurnCompleted, e.TurnFailed, e.TurnCancelled)
_SCHEMA = {"type": "object", "properties": {"slot": {"type": "string"}}}
TOOLS = {
    "pay": ToolSpec("pay", "bank", "pay", "Takes effect with each call.", _SCHEMA),
    "look_up": ToolSpec("look_up", "bank", "look_up", "Has no effect.", _SCHEMA, read_only=True),
    "book": ToolSpec("book", "bank", "book", "Takes effect once per key.", _SCHEMA, deduplicates=True),
}


@dataclass(frozen=True)
class Script:
    """The model's part of a turn.

    `steps` has the names of the tools that each step calls; the last one calls none. Each step first writes `chunks`.
    """

    steps: tuple[tuple[str, ...], ...]
    chunks: int = 2
    is_stored: bool = True


@dataclass
class Waiting:
    """Work that waits for the test. `proceed` may only be called once."""

    name: str
    proceed: Callable[[], None]


class Outside:
    """The model server and the tool server, outside the workers.

    They outlive workers: a call that a worker has sent takes effect although the worker was killed.
    """

    def __init__(self) -> None:
        self.scripts: list[Script] = []
        self.waiting: list[Waiting] = []
        self.effects: Counter[str] = Counter()
        self.results: Counter[str] = Counter()
        self.keys: dict[str, set[str]] = {}
        self.late_calls: list[str] = []
        self.is_automatic = False
        self._attempts = 0

    def check_lease(self, number: int, name: str, lease: WorkerLease) -> None:
        """Note a call of a stored turn that starts without a lease."""
        if self.scripts[number].is_stored and not lease.is_valid:
            self.late_calls.append(name)

    def next_attempt(self) -> int:
        self._attempts += 1
        return self._attempts

    def let_proceed(self, index: int) -> str | None:
        """Let some work proceed, and return its name; None if none waits."""
        if not self.waiting:
            return None
        work = self.waiting.pop(index % len(self.waiting))
        work.proceed()
        return work.name

    async def wait(self, name: str) -> None:
        """Wait for the test, in the loop of a worker."""
        if self.is_automatic:
            return
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        work = Waiting(name, lambda: loop.call_soon(_complete, done))
        self.waiting.append(work)
        try:
            await done
        finally:
            if work in self.waiting:
                self.waiting.remove(work)

    async def take_effect(self, request: ToolCallRequest) -> None:
        """Send a call to the tool server, and wait for its answer.

        The server executes it also when its caller is gone.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        slot, tool = str(request.arguments["slot"]), request.spec.name

        def execute() -> None:
            keys = self.keys.setdefault(slot, set())
            if tool != "look_up" and not (tool == "book" and request.idempotency_key in keys):
                self.effects[slot] += 1
            keys.add(request.idempotency_key)
            loop.call_soon(_complete, done)

        if self.is_automatic:
            execute()
        else:
            self.waiting.append(Waiting(f"effect of {tool} {slot}", execute))
        await done


def _complete(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


class ScriptedModel(Model):
    """Writes a different text with each call.

    So text of an interrupted call is recognized.
    """

    def __init__(self, outside: Outside, lease: WorkerLease) -> None:
        self._outside = outside
        self._lease = lease

    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        last_user = max(i for i, message in enumerate(call.messages) if message.role == "user")
        number = int(call.messages[last_user].text)
        step = sum(message.role == "assistant" for message in call.messages[last_user:])
        script = self._outside.scripts[number]
        attempt = self._outside.next_attempt()
        tools = script.steps[step] if step < len(script.steps) else ()
        name = f"model call {attempt} of turn {number} step {step}"
        call.require_lease()
        self._outside.check_lease(number, name, self._lease)
        sink.on_accepted()
        for chunk in range(script.chunks):
            await self._outside.wait(name)
            await sink.capacity.wait_for_capacity()
            sink.on_text(f"{attempt}.{chunk} ")
        for index, tool in enumerate(tools):
            arguments = json.dumps({"slot": f"{number}/{step}/{index}"})
            sink.on_tool_call(ToolCall(id=f"call_{attempt}_{index}", name=tool, arguments=arguments))
        await self._outside.wait(name)
        return ModelAnswer("tool_calls" if tools else "stop", Usage(1, 1, 2))

    async def check(self) -> str | None:
        return None


class ScriptedToolbox:
    """The tools of `TOOLS`."""

    def __init__(self, outside: Outside, lease: WorkerLease) -> None:
        self._outside = outside
        self._lease = lease
        self.sign_in_service = SimpleNamespace()  # takes the callbacks of sign-ins, of which there are none
        self.tasks = SimpleNamespace()  # no scripted tool runs as a task

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        return tuple(TOOLS.values())

    def list_missing_tools(self, principal: Principal) -> tuple[str, ...]:
        return ()

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        return TOOLS.get(name)

    def get_instructions(self, servers: Collection[str]) -> str:
        return ""

    async def connect_user(self, principal: Principal) -> None:
        """Do nothing: the tools are the same for all users."""

    def explain_absence(self, server: str, principal: Principal) -> str:
        return ""

    async def wait_until_connected(self, _seconds: float) -> None:
        """Do nothing: there is no server to connect to."""

    async def call_tool(self, request: ToolCallRequest) -> ToolResult:
        slot = str(request.arguments["slot"])
        request.require_lease()
        self._outside.check_lease(int(slot.split("/")[0]), f"call {slot}", self._lease)
        await self._outside.take_effect(request)
        await self._outside.wait(f"result of {slot}")
        self._outside.results[slot] += 1
        return ToolResult(outcome="ok", content=[text_block(slot)])


@dataclass
class SeenEvents:
    """The entries that one client was shown, over all of its connections."""

    entries: list[JournalEntry] = field(default_factory=list)

    @property
    def last_seq(self) -> int:
        return self.entries[-1].seq if self.entries else 0

    @property
    def has_end(self) -> bool:
        return any(isinstance(entry.event, ENDS) for entry in self.entries)

    def copy(self) -> "SeenEvents":
        return SeenEvents(list(self.entries))

    def show(self, batch: list[JournalEntry]) -> None:
        for entry in batch:
            assert not self.has_end, f"shown after the end: {entry}"
            assert entry.seq > self.last_seq, f"shown twice or out of order: {entry}"
            self.entries.append(JournalEntry(entry.seq, entry.event, b""))


class TurnClient:
    """A client that starts a turn, reads it and reconnects."""

    def __init__(self, number: int, *, is_stored: bool) -> None:
        self.number = number
        self.is_stored = is_stored
        self.turn_id: UUID | None = None
        self.error: str | None = None
        self.closed_for: str | None = None
        self.seen = SeenEvents()
        self.reading: asyncio.Task[None] | None = None

    @property
    def is_reading(self) -> bool:
        return self.reading is not None and not self.reading.done()

    async def start(self, service: TurnService, request: Any) -> None:
        try:
            handle = await service.start_turn(request, PRINCIPAL)
        except GatewayError as error:
            self.error = error.code
            return
        self.turn_id = handle.id
        await self._read(service, handle)

    async def reconnect(self, service: TurnService) -> None:
        assert self.turn_id is not None
        try:
            handle = await service.get_turn(self.turn_id, PRINCIPAL)
            await self._read(service, handle)
        except GatewayError as error:
            self.closed_for = error.code

    async def _read(self, service: TurnService, handle: TurnHandle) -> None:
        seen = self.seen
        async with service.listen_to_turn(handle, after=seen.last_seq) as listener:
            async for batch in listener:
                seen.show(batch)
        self.closed_for = listener.close_reason


def assemble_text(events: list[e.Event]) -> dict[int, str]:
    """Assemble the text of each step by the rules of the events."""
    texts: dict[int, str] = {}
    for event in events:
        match event:
            case e.TextDelta():
                texts[event.step] = texts.get(event.step, "") + event.text
            case e.ModelRetry(discard=True):
                texts.pop(event.step, None)
            case _:
                pass
    return texts


def parse_payload(first_seq: int, payload: str) -> list[JournalEntry]:
    """Parse a row of the journal."""
    return [JournalEntry(first_seq + n, decode_event(line), b"") for n, line in enumerate(payload.split("\n"))]
