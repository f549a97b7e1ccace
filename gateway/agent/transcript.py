"""Folds a turn's events into messages.

The next model call and the database use the messages.
"""

import itertools
from typing import assert_never, cast
from uuid import UUID

import msgspec

from gateway.agent.tool_search import FIND_TOOLS, RUN_PYTHON
from gateway.domain import events as e
from gateway.domain.branches import FollowUp
from gateway.domain.images import IMAGE_TYPES, build_image_message
from gateway.domain.messages import JsonObject, Message, ToolCall, Usage
from gateway.ports.listener import EventFold

_json = msgspec.json.Encoder(order="sorted")
_MAX_IMAGES = 10
_MAX_IMAGE_CHARS = 4 * 1024 * 1024
"""Of the images of a step in base64."""
LOST_RESULT_TEXT = "The outcome of this call is not known: the turn was interrupted before its result arrived."


class TranscriptStep:
    """A step of a turn: its text, calls and results."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.calls: dict[str, e.ToolCallStarted] = {}
        self.program_calls: dict[str, e.ToolCallStarted] = {}
        self.results: dict[str, e.ToolFinished] = {}
        self.completion: e.StepCompleted | None = None

    def messages(self, *, with_images: bool = False) -> list[Message]:
        """The assistant's message, and one per call that ran here.

        A missing result gets a placeholder. With `with_images`, a last message has the images of the results.
        """
        text, refusal = "".join(self.text), "".join(self.refusal)
        if not self.calls and not text and not refusal:
            return []
        if not self.calls:
            return [Message("assistant", text or None, refusal=refusal or None)]
        calls = tuple(_build_call(call) for call in self.calls.values())
        message = Message(role="assistant", content=text or None, tool_calls=calls, refusal=refusal or None)
        images = self._build_image_message() if with_images else None
        shown = images is not None
        results = (self._result_message(call_id, shown) for call_id, call in self.calls.items() if not call.client)
        return [message, *results, *((images,) if images is not None else ())]

    @property
    def all_calls(self) -> list[e.ToolCallStarted]:
        """The calls of the model, then those of its programs."""
        return [*self.calls.values(), *self.program_calls.values()]

    def _build_image_message(self) -> Message | None:
        """Build the message with the images of results; None without any."""
        names, blocks, size = list[str](), list[JsonObject](), 0
        for call_id, result in self.results.items():
            if call_id in self.calls:
                for block in result.content:
                    if not _is_shown_image(block) or (size := size + len(block["data"])) > _MAX_IMAGE_CHARS:
                        continue
                    names.append(self.calls[call_id].tool)
                    blocks.append(block)
        return build_image_message(names[:_MAX_IMAGES], blocks[:_MAX_IMAGES]) if blocks else None

    def get_call(self, call_id: str) -> e.ToolCallStarted:
        """Return a call of the model, or of one of its programs."""
        return self._get_calls(call_id)[call_id]

    def replace_call(self, call: e.ToolCallStarted) -> None:
        """Replace the call of the same id."""
        self._get_calls(call.call_id)[call.call_id] = call

    def _get_calls(self, call_id: str) -> dict[str, e.ToolCallStarted]:
        return self.calls if call_id in self.calls else self.program_calls

    @property
    def refused_calls(self) -> list[str]:
        """Ids of the calls at which a replay stops."""
        return [call_id for call_id, result in self.results.items() if result.source == "not_run"]

    def _result_message(self, call_id: str, shows_images: bool) -> Message:
        result = self.results.get(call_id)
        text = format_result(result, shows_images=shows_images) if result else LOST_RESULT_TEXT
        return Message(role="tool", tool_call_id=call_id, content=text)


class Transcript(EventFold):
    """A turn's text, calls, usage and cost so far.

    It is built from the turn's events. `loaded_tools` are the names that `find_tools` has loaded, in order. `cost_usd`
    is None if the price of a step is unknown. `reasoning_chars` counts the reasoning of the incomplete step.
    `follow_ups` are the user's messages between the steps of a fork.
    """

    def __init__(self, follow_ups: tuple[FollowUp, ...] = ()) -> None:
        self._follow_ups = follow_ups
        self._steps: dict[int, TranscriptStep] = {}
        self._call_steps: dict[str, TranscriptStep] = {}
        self._hosted_calls: set[str] = set()
        self._open_inputs: dict[str, str] = {}
        self._wait_ids: set[str] = set()
        self.loaded_tools: dict[str, None] = {}
        self.history_summary: e.HistorySummarized | None = None
        self._samplings: dict[str, int] = {}
        self.usage = Usage()
        self.cost_usd: float | None = 0.0
        self.reasoning_chars = 0

    def apply(self, event: e.Event) -> None:
        match event:
            case e.TextDelta():
                step = self._get_step(event.step)
                (step.refusal if event.refusal is True else step.text).append(event.text)
            case e.ReasoningDelta():
                self.reasoning_chars += len(event.text)
            case e.ToolCallStarted() if event.hosted:
                self._hosted_calls.add(event.call_id)
            case e.ToolFinished() if event.call_id in self._hosted_calls:
                pass  # the model has received the result during its call
            case e.ToolCallStarted():
                step = self._call_steps[event.call_id] = self._get_step(event.step)
                calls = step.calls if event.parent_call_id is msgspec.UNSET else step.program_calls
                calls[event.call_id] = event
            case e.ToolFinished():
                step = self._call_steps[event.call_id]
                step.results[event.call_id] = event
                for input_id in self.open_inputs(event.call_id):  # its server no longer waits for an answer
                    del self._open_inputs[input_id]
                if step.get_call(event.call_id).tool == FIND_TOOLS:
                    structured = cast("JsonObject", event.structured or {})
                    self.loaded_tools |= dict.fromkeys(structured.get("loaded", ()))
            case e.StepCompleted():
                self._get_step(event.step).completion = event
                self.add_usage(event.usage, event.cost_usd)
                self.reasoning_chars = 0
            case e.HistorySummarized():
                self.history_summary = event
                self.add_usage(event.usage, event.cost_usd)
            case e.SamplingCompleted():
                self._samplings[event.call_id] = self.count_samplings(event.call_id) + 1
                self.add_usage(event.usage, event.cost_usd)
            case e.InputRequired():
                self._open_inputs[event.input_id] = event.call_id
            case e.ToolProgress():
                if event.wait_id is not msgspec.UNSET:
                    self._open_inputs[event.wait_id] = event.call_id
                    self._wait_ids.add(event.wait_id)
            case e.InputResolved():
                self._open_inputs.pop(event.input_id, None)
                self._apply_edited_arguments(event)
            case e.ModelRetry():
                if event.discard:
                    self._steps.pop(event.step, None)
                    self.reasoning_chars = 0
                if event.usage is not msgspec.UNSET:
                    self.add_usage(event.usage, None if event.cost_usd is msgspec.UNSET else event.cost_usd)
            case (
                e.TurnStarted() | e.ToolLog() | e.TurnResumed() | e.TurnCompleted() | e.TurnFailed() | e.TurnCancelled()
            ):
                pass
            case _:
                assert_never(event)

    def add_usage(self, usage: Usage, cost_usd: float | None) -> None:
        """Add tokens and cost."""
        self.usage = self.usage + usage
        self.cost_usd = _add_cost(self.cost_usd, cost_usd)

    def count_samplings(self, call_id: str) -> int:
        """Count the sampling requests of a tool call."""
        return self._samplings.get(call_id, 0)

    def list_steps(self) -> list[int]:
        """List the numbers of the steps with text or calls."""
        return sorted(self._steps)

    @property
    def steps(self) -> int:
        return len(self._steps)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The assistant's and the tools' messages, in order."""
        return self.build_messages()

    def build_messages(self, *, with_images: bool = False) -> tuple[Message, ...]:
        """Build the messages for a model.

        With `with_images`, images of results follow the results of their step.
        """
        messages: list[Message] = []
        for number in sorted(self._steps):
            messages += self._steps[number].messages(with_images=with_images)
            if self._follow_ups:
                messages += [Message("user", up.text) for up in self._follow_ups if up.after_step == number]
        return tuple(messages)

    @property
    def numbered_steps(self) -> list[tuple[int, TranscriptStep]]:
        """The steps with their numbers, in order."""
        return sorted(self._steps.items())

    @property
    def response(self) -> str:
        """The text of the last step that has text."""
        for number in sorted(self._steps, reverse=True):
            if text := self.step_text(number):
                return text
        return ""

    @property
    def waits_for_input(self) -> bool:
        """True if a call waits for a person or a task."""
        return bool(self._open_inputs)

    @property
    def waits_for_tasks_only(self) -> bool:
        """True if no call waits for a person."""
        return self._open_inputs.keys() <= self._wait_ids

    @property
    def open_input_ids(self) -> list[UUID]:
        """Ids of the questions whose answers have not been used."""
        return [UUID(input_id) for input_id in self._open_inputs]

    def is_open_input(self, input_id: str) -> bool:
        """Return whether this question is still open."""
        return input_id in self._open_inputs

    def open_inputs(self, call_id: str) -> set[str]:
        """Return the ids of the unanswered questions of a call."""
        return {input_id for input_id, asking in self._open_inputs.items() if asking == call_id}

    def _apply_edited_arguments(self, event: e.InputResolved) -> None:
        """Replace a call's arguments by those of its approval.

        The approved arguments are those that ran.
        """
        arguments = event.edited_arguments
        if arguments is not None and event.call_id in self._call_steps:
            step = self._call_steps[event.call_id]
            step.replace_call(msgspec.structs.replace(step.get_call(event.call_id), arguments=arguments))

    def incomplete_step(self) -> int | None:
        """Return the number of the last step if it is incomplete.

        A step is incomplete while its model stream has not ended. None if there is no such step.
        """
        last_step = max(self._steps, default=0)
        if last_step and not self._steps[last_step].completion:
            return last_step
        return last_step + 1 if self.reasoning_chars else None

    def interrupted_step(self, *, structured: bool) -> int | None:
        """Return the step whose model call may have been interrupted.

        The call may have been in progress when these events ended. Return None if none was. A client may have seen
        deltas of that call that were never stored. Deltas become visible only after all events before them are stored,
        so the events tell which step these can belong to. `structured`: the answer must match a schema, and a step
        without calls and without text is followed by another one.
        """
        if (incomplete := self.incomplete_step()) is not None:
            return incomplete
        last = max(self._steps, default=0)
        if not last:
            return 1
        if self.open_calls() or self.waits_for_input or self.has_client_calls(last):
            return None
        is_followed = self.is_followed(last) or (structured and not self.step_text(last))
        return last + 1 if is_followed and not self._steps[last].refused_calls else None

    def count_written_chars(self, step: int) -> int:
        """Count the characters that the model has written in an incomplete step."""
        partial = self._steps.get(step, TranscriptStep())
        calls = sum(len(str(call.arguments)) for call in partial.calls.values())
        return self.reasoning_chars + sum(map(len, (*partial.text, *partial.refusal))) + calls

    def last_step(self) -> e.StepCompleted | None:
        """Return the event that completed the last step, if it is complete."""
        return self._steps[max(self._steps)].completion if self._steps else None

    def open_calls(self) -> list[e.ToolCallStarted]:
        """Return the calls of completed steps that have no result."""
        steps = [step for step in self._steps.values() if step.completion]
        return [
            call
            for step in steps
            for call_id, call in step.calls.items()
            if call_id not in step.results and not call.client
        ]

    def get_call(self, call_id: str) -> e.ToolCallStarted:
        """Return a call with the arguments of its approval, if any."""
        return self._call_steps[call_id].get_call(call_id)

    def find_call(self, call_id: str) -> e.ToolCallStarted | None:
        """Return a call with the arguments of its approval.

        None: there is no call of this id.
        """
        return self.get_call(call_id) if call_id in self._call_steps else None

    def find_result(self, call_id: str) -> e.ToolFinished | None:
        """Return the result of a call; None if it has none yet."""
        step = self._call_steps.get(call_id)
        return None if step is None else step.results.get(call_id)

    def list_open_program_calls(self, parent_call_id: str) -> list[e.ToolCallStarted]:
        """List the calls of a program that have no result."""
        step = self._call_steps[parent_call_id]
        calls = (call for call in step.program_calls.values() if call.parent_call_id == parent_call_id)
        return [call for call in calls if call.call_id not in step.results]

    def has_program_calls(self, parent_call_id: str) -> bool:
        """Return whether a program has made a call."""
        calls = self._call_steps[parent_call_id].program_calls.values()
        return any(call.parent_call_id == parent_call_id for call in calls)

    def has_earlier_open_program(self, call_id: str) -> bool:
        """Return whether an earlier program of the step has no result."""
        step = self._call_steps[call_id]
        earlier = itertools.takewhile(lambda call: call.call_id != call_id, step.calls.values())
        return any(call.tool == RUN_PYTHON and call.call_id not in step.results for call in earlier)

    def list_finished_programs(self) -> list[tuple[e.ToolCallStarted, e.ToolFinished]]:
        """List the programs that have ended, in order, with their results."""
        return [
            (call, step.results[call.call_id])
            for _, step in self.numbered_steps
            for call in step.calls.values()
            if call.tool == RUN_PYTHON and call.call_id in step.results
        ]

    def has_calls(self, step: int) -> bool:
        return bool(self._steps[step].calls)

    def is_followed(self, step: int) -> bool:
        """Return whether the model must answer what follows the step.

        That is the results of its calls, or a message of the user.
        """
        return self.has_calls(step) or any(up.after_step == step for up in self._follow_ups)

    def has_refused_calls(self, step: int) -> bool:
        """Return whether a replay stops after the step."""
        return bool(self._steps[step].refused_calls)

    def has_client_calls(self, step: int) -> bool:
        """Return whether the step called a client-side tool."""
        return any(call.client for call in self._steps[step].calls.values())

    def has_text(self, step: int) -> bool:
        """Return whether a step, which may be incomplete, has text."""
        return step in self._steps and bool(self._steps[step].text)

    def step_text(self, step: int) -> str:
        return "".join(self._steps[step].text or self._steps[step].refusal)

    def knows_call(self, call_id: str) -> bool:
        return call_id in self._call_steps

    def _get_step(self, number: int) -> TranscriptStep:
        step = self._steps.get(number)
        if step is None:
            step = self._steps[number] = TranscriptStep()
        return step


def _add_cost(cost: float | None, more: float | None) -> float | None:
    """Add two costs; None if either is unknown."""
    return None if cost is None or more is None else round(cost + more, 9)


def _build_call(call: e.ToolCallStarted) -> ToolCall:
    extra_content = None if call.extra_content is msgspec.UNSET else call.extra_content
    model_id = call.model_id if isinstance(call.model_id, str) else ""
    return ToolCall(call.call_id, call.tool, _encode_arguments(call), extra_content=extra_content, model_id=model_id)


def _encode_arguments(call: e.ToolCallStarted) -> str:
    """Encode a call's arguments as the text of a JSON object.

    Groq accepts only the text of a JSON object. Other arguments become `{}`; the error result tells the model what was
    wrong.
    """
    return _json.encode(call.arguments).decode() if isinstance(call.arguments, dict) else "{}"


def format_result(result: e.ToolFinished, *, shows_images: bool = False) -> str:
    """Format the result for the model.

    It consists of the text blocks, a short label for each other block, or the structured value if there are no blocks.
    """
    text = "\n".join(_format_block(block, shows_images) for block in result.content)
    if not text and result.structured is not None:
        text = _json.encode(result.structured).decode()
    if result.outcome == "ok":
        return text or "(no output)"
    return text if text.lower().startswith("error") else f"Error: {text or result.outcome}"


def _format_block(block: JsonObject, shows_images: bool) -> str:
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text", ""))
    if kind == "resource":
        resource = block.get("resource", {})
        return str(resource.get("text") or f"[resource {resource.get('uri')}, {resource.get('mimeType', 'binary')}]")
    if kind == "resource_link":
        return f"[link {block.get('uri')}: {block.get('description') or block.get('name')}]"
    is_shown = shows_images and _is_shown_image(block)
    return f"[{kind} {block.get('mimeType', '')}, {'shown below' if is_shown else 'not shown to you'}]"


def _is_shown_image(block: JsonObject) -> bool:
    return block.get("type") == "image" and block.get("mimeType") in IMAGE_TYPES and isinstance(block.get("data"), str)
