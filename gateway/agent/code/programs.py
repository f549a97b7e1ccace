"""Runs the programs of a turn.

Their calls are ordinary tool calls of the turn.
A program that was interrupted, or that waited for a person, runs again from its start: the calls that have a result get
it from the turn's events, so none is made twice. See docs/adr/0029.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import msgspec

from gateway.agent.model_context import TurnContext
from gateway.agent.transcript import format_result
from gateway.domain.events import ToolCallStarted, ToolFinished
from gateway.domain.messages import JsonObject, ToolCall, ToolResult, text_block
from gateway.ports.code import (
    CallAnswer,
    ProgramCalls,
    ProgramDiverged,
    ProgramInterface,
    ProgramResult,
    ProgramSession,
    ProgramSuspended,
    Sandbox,
)
from gateway.ports.turns import NestedCalls

_LOST = "lost"
_CODE = "code"
_NO_CODE = "The argument `code` must be a text."
_DIVERGED = "The program could not be continued: it made other calls than before. Its calls so far have taken effect."
_LOST_NOTE = "The variables of this answer's programs are lost."
_NO_OUTPUT = "(no output: print what you need, or end with an expression)"

StartCalls = Callable[[str], NestedCalls]
"""Makes the scheduler of a program's calls.

The argument is the id of the call of the program.
"""


class TurnPrograms:
    """The programs of one turn, in one session."""

    def __init__(
        self, sandbox: Sandbox, interface: ProgramInterface, turn: TurnContext, *, max_result_chars: int
    ) -> None:
        self._sandbox = sandbox
        self._interface = interface
        self._turn = turn
        self._max_result_chars = max_result_chars
        self._session: ProgramSession | None = None

    async def run(self, call: ToolCall, arguments: JsonObject, start_calls: StartCalls) -> ToolResult | None:
        """Run a program to its end.

        None: it waits for a person.
        """
        code = arguments.get(_CODE)
        if not isinstance(code, str):
            return ToolResult("error", [text_block(_NO_CODE)])
        try:
            session, calls = await self._get_session(call.id, start_calls), start_calls(call.id)
            result = await session.run(code, _Calls(call.id, self._turn, self._interface, calls))
            await calls.wait_for_results()
            if self._turn.transcript.has_open_program_calls(call.id):
                raise ProgramSuspended
        except ProgramSuspended:
            self._session = None
            return None
        except ProgramDiverged:
            self._session = None
            return ToolResult("error", [text_block(_DIVERGED)], {_LOST: True})
        return self._build_result(result)

    async def _get_session(self, call_id: str, start_calls: StartCalls) -> ProgramSession:
        """Return the session, with the variables of the turn's earlier programs.

        After a takeover, or a wait for a person, these run again on their recorded answers.
        """
        if self._session is None:
            now = datetime.fromtimestamp(_read_milliseconds(self._turn.id) / 1000, UTC).replace(microsecond=0)
            self._session = self._sandbox.create_session(self._interface, now=now, seed=self._turn.id.hex)
            for earlier in self._list_earlier(call_id):
                code = cast("JsonObject", earlier.arguments)[_CODE]
                calls = _Calls(earlier.call_id, self._turn, self._interface, start_calls(earlier.call_id))
                await self._session.run(str(code), calls)
        return self._session

    def _list_earlier(self, call_id: str) -> list[ToolCallStarted]:
        """List the programs before this one whose variables live on.

        A program that got a recorded result did not run here.
        """
        programs: list[ToolCallStarted] = []
        for call, result in self._turn.transcript.list_finished_programs():
            if call.call_id == call_id:
                break
            if result.structured == {_LOST: True}:
                programs.clear()
            elif (
                result.source is msgspec.UNSET
                and isinstance(call.arguments, dict)
                and isinstance(call.arguments.get(_CODE), str)
            ):
                programs.append(call)
        return programs

    def _build_result(self, result: ProgramResult) -> ToolResult:
        if result.outcome == "rejected":
            return ToolResult("error", [text_block(f"The program was not run:\n{result.problem}")])
        parts = [result.printed.rstrip("\n"), result.value, result.problem, _LOST_NOTE if result.is_lost else None]
        text = "\n".join(part for part in parts if part) or _NO_OUTPUT
        if (cut := len(text) - self._max_result_chars) > 0:
            text = f"{text[: self._max_result_chars]}\n[{cut:,} characters were cut: print less]"
        return ToolResult(
            "ok" if result.outcome == "ok" else "error", [text_block(text)], {_LOST: True} if result.is_lost else None
        )


class _Calls(ProgramCalls):
    """The calls of one program, by the events of the turn."""

    def __init__(self, parent: str, turn: TurnContext, interface: ProgramInterface, calls: NestedCalls) -> None:
        self._parent = parent
        self._turn = turn
        self._interface = interface
        self._calls = calls

    def begin_call(self, number: int, function: str, arguments: JsonObject) -> None:
        tool, call_id = self._interface.functions[function], self._make_id(number)
        known = self._turn.transcript.find_call(call_id)
        if known is None:
            self._calls.add_call(ToolCall(call_id, tool, msgspec.json.encode(arguments).decode()))
        elif known.tool != tool:
            raise ProgramDiverged
        elif self._turn.transcript.find_result(call_id) is None:
            self._calls.settle_open_call(known)

    async def wait_for_answers(self, numbers: Collection[int]) -> Mapping[int, CallAnswer]:
        await self._calls.wait_for_results()
        results = {number: self._turn.transcript.find_result(self._make_id(number)) for number in numbers}
        answers = {number: _to_answer(result) for number, result in results.items() if result is not None}
        if len(answers) < len(results):
            raise ProgramSuspended
        return answers

    def _make_id(self, number: int) -> str:
        return f"{self._parent}.{number}"


def _to_answer(result: ToolFinished) -> CallAnswer:
    if result.outcome != "ok":
        return CallAnswer(error=format_result(result))
    return CallAnswer(format_result(result) if result.structured is None else result.structured)


def _read_milliseconds(turn_id: UUID) -> int:
    """Read the time in a UUID of version 7."""
    return turn_id.int >> 80
