"""Answers the tool calls of replays with recorded results."""

import msgspec

from gateway.agent.tool_search import FIND_TOOLS, RUN_PYTHON
from gateway.agent.transcript import Transcript
from gateway.common.arguments import normalize_arguments
from gateway.domain.branches import OnNewCall
from gateway.domain.events import ToolCallStarted, ToolFinished
from gateway.domain.messages import ToolSpec, text_block

_NOT_RUN = "Not run: the recorded turn did not make this call, and the replay stops here."


class RecordedCalls:
    """The results of the steps of `recorded` after `after_step`.

    A call is answered by an equal one: of the same tool, with the same normalized arguments. The second of equal calls
    gets the second result, and so on. `replay` is the turn that makes the calls. The object has no state of its own,
    so neither a discarded step nor a takeover changes an answer.
    """

    def __init__(self, recorded: Transcript, replay: Transcript, *, after_step: int, on_new_call: OnNewCall) -> None:
        self._recorded = [
            (call, step.results[call.call_id])
            for number, step in recorded.numbered_steps
            for call in step.all_calls
            if number > after_step and call.call_id in step.results and call.call_id not in step.refused_calls
        ]
        self._replay = replay
        self._after_step = after_step
        self._on_new_call: OnNewCall = on_new_call

    def find_answer(self, call: ToolCallStarted, spec: ToolSpec | None) -> ToolFinished | None:
        """Return the result of a call that must not run, or None.

        `spec` is the tool on offer, if there is one of this name. A call that differs from the recorded ones runs if
        `on_new_call` allows it. `find_tools` always runs: it searches the gateway's own list, and calls no tool.
        """
        key = _make_key(call, spec)
        results = [result for recorded, result in self._recorded if _is_equal(recorded, call, key, spec)]
        if (number := self._count_earlier(call, key, spec)) < len(results):
            return msgspec.structs.replace(results[number], call_id=call.call_id, source="recorded")
        if self._may_run(spec):
            return None
        return ToolFinished(call_id=call.call_id, outcome="denied", content=[text_block(_NOT_RUN)], source="not_run")

    def _count_earlier(self, call: ToolCallStarted, key: bytes, spec: ToolSpec | None) -> int:
        """Count the equal calls that the replay made before this one."""
        count = 0
        for number, step in self._replay.numbered_steps:
            for earlier in step.all_calls if number > self._after_step else ():
                if earlier.call_id == call.call_id:
                    return count
                count += _is_equal(earlier, call, key, spec)
        return count

    def _may_run(self, spec: ToolSpec | None) -> bool:
        if spec is not None and spec.helper and spec.name == FIND_TOOLS:
            return True
        if self._on_new_call == "run_read_only":
            if spec is None or (spec.helper and spec.name == RUN_PYTHON):
                return True  # the call only gets an error, or a program, whose calls are decided on one by one
            return spec.read_only
        return self._on_new_call == "run"


def _is_equal(other: ToolCallStarted, call: ToolCallStarted, key: bytes, spec: ToolSpec | None) -> bool:
    return other.tool == call.tool and _make_key(other, spec) == key


def _make_key(call: ToolCallStarted, spec: ToolSpec | None) -> bytes:
    return normalize_arguments(call.arguments, spec.input_schema if spec is not None else {})
