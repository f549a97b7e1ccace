"""A toolbox with gated calls and a turn context without a runner."""

import asyncio
from collections.abc import Collection
from typing import cast
from uuid import UUID, uuid4

from gateway.agent.model_context import TurnContext
from gateway.agent.tasks.waits import TurnTaskWaits
from gateway.agent.transcript import Transcript
from gateway.agent.turn_log import TurnLog
from gateway.domain.errors import NotFound
from gateway.domain.events import Event
from gateway.domain.messages import (
    Answer,
    JsonObject,
    PendingInput,
    Principal,
    Question,
    ToolResult,
    ToolSpec,
    TurnRecord,
    TurnRequest,
    Usage,
    text_block,
)
from gateway.ports.model import ModelCall
from gateway.ports.tools import HostExchange, ItemKind, ServerStatus, ToolCallRequest
from gateway.store.tasks.waits import TaskWaitStore


def spec(name: str, *, read_only: bool = False) -> ToolSpec:
    return ToolSpec(name, "tools", name, f"The tool {name}.", {"type": "object"}, read_only=read_only)


class GatedToolbox:
    """A toolbox whose calls wait until the test opens their gates."""

    def __init__(self, *specs: ToolSpec) -> None:
        self._specs = specs
        self.started: list[str] = []
        self.running: set[str] = set()
        self.cancelled: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Condition()

    def open_gate(self, name: str) -> None:
        self._get_gate(name).set()

    async def wait_until_started(self, *names: str) -> None:
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: set(names) <= set(self.started))

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        return self._specs

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        return next((spec for spec in self._specs if spec.name == name), None)

    def get_instructions(self, servers: Collection[str]) -> str:
        return ""

    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        return []

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        raise NotFound

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        raise NotFound

    def list_instructions(self) -> list[tuple[str, str]]:
        return []

    async def complete_argument(
        self,
        ref: JsonObject,
        argument: JsonObject,
        principal: Principal,
        server: str | None = None,
        context: dict[str, str] | None = None,
    ) -> JsonObject:
        raise NotFound

    def list_server_statuses(self) -> list[ServerStatus]:
        return []

    def list_changed_tools(self) -> frozenset[tuple[str, str]]:
        return frozenset()

    def recheck_server(self, server: str) -> None:
        """Do nothing: the tools never change."""

    def get_forwarded_headers(self) -> frozenset[str]:
        return frozenset()

    async def call_tool(self, request: ToolCallRequest) -> ToolResult:
        name = str(request.arguments.get("as", request.spec.name))
        self.started.append(name)
        self.running.add(name)
        async with self._changed:
            self._changed.notify_all()
        try:
            await self._get_gate(name).wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            self.running.discard(name)
        return ToolResult(outcome="ok", content=[text_block(f"{name} done")])

    def _get_gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())


class RecordingTurn(TurnContext):
    """A turn context without a runner, whose events are durable at once."""

    is_stored = True

    def __init__(self) -> None:
        self.log = TurnLog(uuid4())
        self.transcript = Transcript()
        self.inputs = []
        self.tasks = TurnTaskWaits(TurnRecord(uuid4(), "", TurnRequest(messages=()), ""), cast(TaskWaitStore, None))
        self.was_accepted = False

    @property
    def id(self) -> UUID:
        return self.log.turn_id

    @property
    def events(self) -> list[Event]:
        return [entry.event for entry in self.log.entries]

    def emit(self, event: Event) -> None:
        self.transcript.apply(event)
        self.log.append(event)

    def on_accepted(self) -> None:
        self.was_accepted = True

    async def wait_until_durable(self) -> None:
        self.log.mark_committed(len(self.log.entries))

    def require_lease(self) -> None:
        pass

    def has_capacity(self) -> bool:
        return True

    async def wait_for_capacity(self) -> None:
        pass

    async def reserve_budget(self, call: ModelCall) -> None:
        pass

    async def settle_budget(self) -> None:
        pass

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self.transcript.add_usage(usage, cost_usd)

    def calculate_cost(self, usage: Usage) -> float | None:
        return None

    async def ask_questions(self, call_id: str, pending_input: PendingInput) -> None:
        raise AssertionError(f"{call_id} asks {pending_input}")

    async def ask_inline(self, call_id: str, question: Question) -> Answer:
        raise AssertionError(f"{call_id} asks {question}")

    async def withdraw_questions(self, call_id: str) -> None:
        pass
