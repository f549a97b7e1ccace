"""Runs the programs of a turn.

Their calls are ordinary tool calls of the turn.
A program that was interrupted, or that waited for a person, runs again from its start: the calls that have a result get
it from the turn's events, so none is made twice. See docs/adr/0029.
"""

from collections.abc import Callable, Collection, Container, Mapping
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import msgspec

from gateway.agent.code.results import LOST_VARIABLES, NO_CODE, build_program_result, to_call_answer
from gateway.agent.model_context import TurnContext
from gateway.domain.events import ToolCallStarted, ToolFinished
from gateway.domain.messages import JsonObject, ToolCall, ToolResult, text_block
from gateway.ports.code import (
    CallAnswer,
    ProgramCalls,
    ProgramDiverged,
    ProgramInterface,
    ProgramSession,
    ProgramSuspended,
    Sandbox,
)
from gateway.ports.turns import NestedCalls

_CODE = "code"
_DIVERGED = (
    "The program could not be continued: its tools have changed, or it made other calls than before. Its calls so far "
    "have taken effect."
)

_NOT_MADE_AGAIN = "The program ended without this call, which may or may not have taken effect."

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

        None: it waits for a person, or an earlier program of its step does.
        """
        if self._turn.transcript.has_earlier_open_program(call.id):
            return None
        code = arguments.get(_CODE)
        if not isinstance(code, str):
            return ToolResult("error", [text_block(NO_CODE)])
        transcript, nested = self._turn.transcript, start_calls(call.id)
        calls = _Calls(call.id, self._turn, self._interface, nested)
        try:
            session = await self._get_session(call.id)
            result = await session.run(code, calls)
            await nested.wait_for_results()
            if result.outcome == "rejected" and transcript.has_program_calls(call.id):
                raise ProgramDiverged  # its first run was valid: the tools have changed since
            self._end_calls(call.id, except_of=calls.made)
            if transcript.list_open_program_calls(call.id):
                raise ProgramSuspended
        except ProgramSuspended:
            self._session = None
            return None
        except ProgramDiverged:
            self._session = None
            await nested.wait_for_results()
            self._end_calls(call.id)
            return ToolResult("error", [text_block(_DIVERGED)], LOST_VARIABLES)
        return build_program_result(result, self._max_result_chars)

    def _end_calls(self, program_id: str, *, except_of: Container[str] = ()) -> None:
        """End open calls that the program did not make again.

        Nothing would ever use the answers to their questions.
        """
        for call in self._turn.transcript.list_open_program_calls(program_id):
            if call.call_id not in except_of:
                note = text_block(_NOT_MADE_AGAIN)
                self._turn.emit(ToolFinished(call_id=call.call_id, outcome="unknown", content=[note]))

    async def _get_session(self, call_id: str) -> ProgramSession:
        """Return the session, with the variables of the turn's earlier programs.

        After a takeover, or a wait for a person, these run again on their recorded answers.
        """
        if self._session is None:
            self._session = self._create_session()
            for earlier in self._list_earlier(call_id):
                code = cast("JsonObject", earlier.arguments)[_CODE]
                try:
                    await self._session.run(str(code), _Calls(earlier.call_id, self._turn, self._interface, None))
                except ProgramDiverged:  # its answers are not in this turn, as in a replay
                    self._session = self._create_session()
        return self._session

    def _create_session(self) -> ProgramSession:
        now = datetime.fromtimestamp(_read_milliseconds(self._turn.id) / 1000, UTC).replace(microsecond=0)
        return self._sandbox.create_session(self._interface, now=now, seed=self._turn.id.hex)

    def _list_earlier(self, call_id: str) -> list[ToolCallStarted]:
        """List the programs before this one whose variables live on."""
        programs: list[ToolCallStarted] = []
        for call, result in self._turn.transcript.list_finished_programs():
            if call.call_id == call_id:
                break
            if result.structured == LOST_VARIABLES:
                programs.clear()
            elif result.source != "replaced" and isinstance(call.arguments, dict) and _CODE in call.arguments:
                programs.append(call)
        return programs


class _Calls(ProgramCalls):
    """The calls of one program, by the events of the turn.

    Without `calls`, it makes none, and has only the recorded answers.
    """

    def __init__(self, parent: str, turn: TurnContext, interface: ProgramInterface, calls: NestedCalls | None) -> None:
        self._parent = parent
        self._turn = turn
        self._interface = interface
        self._calls = calls
        self.made: set[str] = set()

    def begin_call(self, number: int, function: str, arguments: JsonObject) -> None:
        tool, call_id = self._interface.functions[function], self._make_id(number)
        self.made.add(call_id)
        known = self._turn.transcript.find_call(call_id)
        if known is not None and known.tool != tool:
            raise ProgramDiverged
        if self._calls is None:
            if known is None or self._turn.transcript.find_result(call_id) is None:
                raise ProgramDiverged
        elif known is None:
            self._calls.add_call(ToolCall(call_id, tool, msgspec.json.encode(arguments).decode()))
        elif self._turn.transcript.find_result(call_id) is None:
            self._calls.settle_open_call(known)

    async def wait_for_answers(self, numbers: Collection[int]) -> Mapping[int, CallAnswer]:
        if self._calls is not None:
            await self._calls.wait_for_results()
        answers: dict[int, CallAnswer] = {}
        for number in numbers:
            call_id = self._make_id(number)
            if (result := self._turn.transcript.find_result(call_id)) is None:
                raise ProgramSuspended
            tool = self._turn.transcript.get_call(call_id).tool
            answers[number] = to_call_answer(result, is_structured=tool in self._interface.structured)
        return answers

    def _make_id(self, number: int) -> str:
        return f"{self._parent}.{number}"


def _read_milliseconds(turn_id: UUID) -> int:
    """Read the time in a UUID of version 7."""
    return turn_id.int >> 80
