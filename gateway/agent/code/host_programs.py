"""Programs of MCP hosts, which run at once and are not stored."""

import asyncio
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from uuid import UUID, uuid4

import msgspec

from gateway.agent.approval import build_approval_request, needs_approval
from gateway.agent.code.call_order import CallOrder
from gateway.agent.code.offer import CodeOffer
from gateway.agent.code.results import NO_CODE, build_program_result, to_call_answer
from gateway.agent.tool_search import FIND_TOOLS, RUN_PYTHON, ToolSelection, search_tools
from gateway.common.concurrency import TaskSet
from gateway.domain.errors import GatewayError
from gateway.domain.events import ToolFinished
from gateway.domain.messages import (
    JsonObject,
    PendingInput,
    Principal,
    StoredQuestion,
    ToolResult,
    ToolSpec,
    text_block,
)
from gateway.ports.code import CallAnswer, HostTools, ProgramCalls, ProgramInterface, RunHostTool
from gateway.ports.tools import CallObserver, Toolbox, ToolCallRequest

_DENIED = (
    "The user did not allow this call, or this host cannot ask them during a program. Then call the tool by itself, "
    "without `mode=code`."
)


_TOO_MANY_QUESTIONS = "The tool asked too many questions."
_MAX_ROUNDS = 10
_NO_FIELDS: JsonObject = {"type": "object", "properties": {}}
"""Form of an approval.

Forms of the protocol have flat fields alone, which arguments are not.
"""


class HostPrograms(HostTools):
    """Offers `run_python` and `find_tools` to hosts, in place of all tools."""

    def __init__(self, toolbox: Toolbox, offer: CodeOffer, *, max_result_chars: int, parallel_calls: int) -> None:
        self._toolbox = toolbox
        self._offer = offer
        self._max_result_chars = max_result_chars
        self._parallel_calls = parallel_calls

    def list_specs(self, principal: Principal) -> tuple[ToolSpec, ...]:
        return self._select(principal).tools

    def prepare_host_tool(self, name: str, principal: Principal) -> RunHostTool | None:
        selection = self._select(principal)
        if selection.interface is None or name not in {spec.name for spec in selection.tools}:
            return None
        if name == FIND_TOOLS:
            return partial(_search, selection)
        return partial(self._run_program, selection, selection.interface, principal) if name == RUN_PYTHON else None

    async def _run_program(
        self,
        selection: ToolSelection,
        interface: ProgramInterface,
        principal: Principal,
        arguments: JsonObject,
        observer: CallObserver,
    ) -> ToolResult:
        code = arguments.get("code")
        if not isinstance(code, str):
            return ToolResult("error", [text_block(NO_CODE)])
        calls = _HostCalls(self._toolbox, selection, interface, principal, observer, self._parallel_calls)
        session = self._offer.sandbox.create_session(interface, now=datetime.now(UTC), seed=uuid4().hex)
        try:
            result = await session.run(code, calls)
            await calls.wait_for_all()
        finally:
            await calls.stop()
        return build_program_result(result, self._max_result_chars)

    def _select(self, principal: Principal) -> ToolSelection:
        specs = tuple(
            spec for spec in self._toolbox.list_specs(principal) if spec.for_model and principal.can_use_tool(spec)
        )
        return self._offer.add_to(ToolSelection(specs), "only")


class _HostCalls(ProgramCalls):
    """The calls of a host's program."""

    def __init__(
        self,
        toolbox: Toolbox,
        selection: ToolSelection,
        interface: ProgramInterface,
        principal: Principal,
        observer: CallObserver,
        limit: int,
    ) -> None:
        self._toolbox = toolbox
        self._specs = {spec.name: spec for spec in selection.functions}
        self._interface = interface
        self._principal = principal
        self._observer = observer
        self._tasks = TaskSet("call of a program", log_errors=False)
        self._running: list[asyncio.Task[None]] = []
        self._answers: dict[int, CallAnswer] = {}
        self._program_waits = asyncio.Event()
        self._slots = asyncio.Semaphore(limit)
        self._order = CallOrder()

    def begin_call(self, number: int, function: str, arguments: JsonObject) -> None:
        spec = self._specs[self._interface.functions[function]]
        earlier = self._order.list_earlier(read_only=spec.read_only)
        task = self._tasks.spawn(self._run_call(number, spec, arguments, earlier))
        self._running.append(task)
        self._order.add(task, read_only=spec.read_only)

    async def wait_for_answers(self, numbers: Collection[int]) -> Mapping[int, CallAnswer]:
        await self.wait_for_all()
        return {number: self._answers[number] for number in numbers}

    async def wait_for_all(self) -> None:
        """Wait for all calls, awaited by the program or not.

        Raises the first error of a call that no tool explains.
        """
        self._program_waits.set()
        await self._tasks.wait()
        self._program_waits.clear()
        for call in self._running:
            call.result()

    async def stop(self) -> None:
        """Cancel the calls that still run."""
        await self._tasks.stop()

    async def _run_call(
        self, number: int, spec: ToolSpec, arguments: JsonObject, earlier: list[asyncio.Task[None]]
    ) -> None:
        is_allowed = await self._ask_for_approval(spec, arguments)
        if earlier:
            await asyncio.wait(earlier)
        async with self._slots:
            self._answers[number] = await self._call_tool(spec, arguments) if is_allowed else CallAnswer(error=_DENIED)

    async def _ask_for_approval(self, spec: ToolSpec, arguments: JsonObject) -> bool:
        if not needs_approval(spec, "never"):
            return True
        await (
            self._program_waits.wait()
        )  # hosts answer in few rounds, so all calls that have begun are asked for at once
        (question,) = build_approval_request(spec, arguments).questions
        question = msgspec.structs.replace(question, schema=_NO_FIELDS)
        return (await self._observer.ask_user(question)).action == "accept"

    async def _call_tool(self, spec: ToolSpec, arguments: JsonObject) -> CallAnswer:
        request = ToolCallRequest(spec, arguments, self._principal, self._observer)
        try:
            for _ in range(_MAX_ROUNDS):
                result = await self._toolbox.call_tool(request)
                if isinstance(result, ToolResult):
                    return self._read_result(spec, result)
                request = msgspec.structs.replace(request, answers=await self._ask(result))
        except GatewayError as error:
            return CallAnswer(error=error.message)
        return CallAnswer(error=_TOO_MANY_QUESTIONS)

    async def _ask(self, pending: PendingInput) -> list[StoredQuestion]:
        """Ask the host's user the questions of a call's result."""
        return [
            StoredQuestion(UUID(int=0), "", question, pending.state, await self._observer.ask_user(question))
            for question in pending.questions
        ]

    def _read_result(self, spec: ToolSpec, result: ToolResult) -> CallAnswer:
        return to_call_answer(
            ToolFinished(call_id="", outcome=result.outcome, content=result.content, structured=result.structured),
            is_structured=spec.name in self._interface.structured,
        )


async def _search(selection: ToolSelection, arguments: JsonObject, _observer: CallObserver) -> ToolResult:
    return search_tools(str(arguments.get("query", "")), selection.hidden, selection.interface)
