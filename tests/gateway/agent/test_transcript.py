"""Tests of the messages that a transcript builds from events."""

from gateway.agent.transcript import LOST_RESULT_TEXT, Transcript
from gateway.domain import events as e
from gateway.domain.messages import Message, ToolCall, Usage, text_block


def build_transcript(*events: e.Event) -> Transcript:
    transcript = Transcript()
    for event in events:
        transcript.apply(e.decode_event(e.encode_event(event)))  # decoded as from the journal
    return transcript


CALL = e.ToolCallStarted(step=1, call_id="c1", server="tools", tool="calculator", arguments={"expression": "23*19"})
RESULT = e.ToolFinished(call_id="c1", outcome="ok", content=[text_block("23*19 = 437")], duration_ms=1.5)
STEP_1 = e.StepCompleted(step=1, finish_reason="tool_calls", usage=Usage(10, 5, 15))


def test_turn_with_a_tool_call_becomes_three_messages() -> None:
    transcript = build_transcript(
        e.TextDelta(step=1, text="Let me "),
        e.TextDelta(step=1, text="see."),
        CALL,
        STEP_1,
        RESULT,
        e.TextDelta(step=2, text="437"),
        e.StepCompleted(step=2, finish_reason="stop", usage=Usage(20, 2, 22)),
    )
    assert transcript.messages == (
        Message("assistant", "Let me see.", (ToolCall("c1", "calculator", '{"expression":"23*19"}'),)),
        Message("tool", "23*19 = 437", tool_call_id="c1"),
        Message("assistant", "437"),
    )
    assert transcript.response == "437"
    assert transcript.usage == Usage(30, 7, 37)
    assert transcript.steps == 2


def test_call_without_result_gets_a_placeholder_result() -> None:
    transcript = build_transcript(CALL, STEP_1)
    assert transcript.messages[1] == Message("tool", LOST_RESULT_TEXT, tool_call_id="c1")


def test_discarded_step_is_removed() -> None:
    retry = e.ModelRetry(step=2, reason="takeover", attempt=1, discard=True)
    transcript = build_transcript(
        CALL, STEP_1, RESULT, e.TextDelta(step=2, text="half a"), retry, e.TextDelta(step=2, text="whole")
    )
    assert transcript.response == "whole"
    assert [message.content for message in transcript.messages] == [None, "23*19 = 437", "whole"]


def test_reasoning_is_never_part_of_a_message() -> None:
    transcript = build_transcript(e.ReasoningDelta(step=1, text="hmm"), e.TextDelta(step=1, text="yes"))
    assert transcript.messages == (Message("assistant", "yes"),)


def test_non_object_arguments_are_replayed_as_empty_object() -> None:
    call = e.ToolCallStarted(step=1, call_id="c1", server=None, tool="calculator", arguments='{"expression": ')
    assert build_transcript(call).messages[0].tool_calls[0].arguments == "{}"


def test_non_text_blocks_are_replaced_by_labels() -> None:
    image = {"type": "image", "mimeType": "image/png", "data": "AAAA"}
    link = {"type": "resource_link", "uri": "tasks://all", "name": "all"}
    resource = {"type": "resource", "resource": {"uri": "file:///a", "text": "inside"}}
    result = e.ToolFinished(call_id="c1", outcome="ok", content=[text_block("see"), image, link, resource])
    assert build_transcript(CALL, result).messages[1].content == (
        "see\n[image image/png, not shown to you]\n[link tasks://all: all]\ninside"
    )


def test_structured_result_without_content_is_sent_as_json() -> None:
    result = e.ToolFinished(call_id="c1", outcome="ok", content=[], structured={"b": 1, "a": [2]})
    assert build_transcript(CALL, result).messages[1].content == '{"a":[2],"b":1}'


def test_failed_result_is_prefixed_with_error() -> None:
    result = e.ToolFinished(call_id="c1", outcome="error", content=[text_block("division by zero")])
    assert build_transcript(CALL, result).messages[1].content == "Error: division by zero"


def test_provider_hosted_call_is_not_replayed_to_the_model() -> None:
    transcript = Transcript()
    transcript.apply(
        e.ToolCallStarted(step=1, call_id="c1", server=None, tool="search", arguments={"query": "x"}, hosted=True)
    )
    transcript.apply(e.ToolFinished(call_id="c1", outcome="ok", content=[{"type": "text", "text": "found"}]))
    transcript.apply(e.TextDelta(step=1, text="Two."))
    transcript.apply(e.StepCompleted(step=1, finish_reason="stop", usage=Usage()))
    assert [(message.role, message.text) for message in transcript.messages] == [("assistant", "Two.")]
    assert transcript.open_calls() == []
    assert not transcript.has_calls(1)
