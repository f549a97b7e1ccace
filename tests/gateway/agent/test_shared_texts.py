"""Tests of the texts that live turns share."""

from types import SimpleNamespace
from typing import Any

from gateway.agent.loop import _share_text, _StepEventSink
from gateway.domain.events import TextDelta


def emit_text(text: str) -> TextDelta:
    """Return the event of a text of another turn."""
    events: list[TextDelta] = []
    turn: Any = SimpleNamespace(emit=events.append)
    sink = _StepEventSink(1, turn, lambda _call: None, quiet=False)
    sink.on_text(bytes(text, "utf-8").decode())  # an object of its own
    return events[0]


def test_turns_share_the_texts_of_equal_tokens() -> None:
    assert emit_text(" token").text is emit_text(" token").text


def test_long_texts_are_not_kept_beyond_their_turn() -> None:
    before = _share_text.cache_info()
    text = emit_text("a text that will not recur").text
    assert text == "a text that will not recur"
    assert _share_text.cache_info() == before


def test_texts_that_are_kept_are_bounded() -> None:
    for number in range(5_000):
        assert emit_text(f" {number}").text == f" {number}"
    assert _share_text.cache_info().currsize == _share_text.cache_info().maxsize
