"""Tests of cache keys and of which answers the response cache stores."""

from typing import Any

import msgspec
import pytest

from gateway.agent.batch_tool import BATCH
from gateway.agent.model_context import ModelContext
from gateway.agent.response_cache import cache_key, is_cacheable
from gateway.domain.events import Event, JournalEntry, ModelRetry, ToolCallStarted, ToolFinished
from gateway.domain.messages import Message, Parameters, Principal, ToolCall
from tests.fakes import spec

HELLO = Message("user", "Hello")


def make_context(**changes: Any) -> ModelContext:
    context = ModelContext("m", (HELLO,), (spec("a"), spec("b")), None, Parameters(), Principal("ada"))
    return msgspec.structs.replace(context, **changes)


def make_call_messages(call_id: str, answered_id: str) -> tuple[Message, ...]:
    calls = (ToolCall(call_id, "a", "{}"), ToolCall("other", "a", "{}"))
    return (HELLO, Message("assistant", None, calls), Message("tool", "1", tool_call_id=answered_id), HELLO)


def test_cache_key_includes_forwarded_headers_but_not_role_or_key_name() -> None:
    key = cache_key(make_context())
    assert key == cache_key(make_context(principal=Principal("ada", "admin", "laptop")))
    assert key != cache_key(make_context(principal=Principal("ada", headers={"x-tenant": "one"})))


def test_cache_key_includes_tool_definitions_and_order() -> None:
    key = cache_key(make_context())
    assert key != cache_key(make_context(tools=(spec("b"), spec("a"))))
    assert key != cache_key(make_context(tools=(spec("a"), spec("b", read_only=True))))
    assert key != cache_key(make_context(tools=(spec("a"),), hidden=(spec("b"),)))


def test_cache_key_ignores_key_order_in_schemas() -> None:
    schemas = ({"type": "object", "title": "x"}, {"title": "x", "type": "object"})
    keys = {
        cache_key(make_context(tools=(msgspec.structs.replace(spec("a"), input_schema=schema),))) for schema in schemas
    }
    assert len(keys) == 1


def test_cache_key_ignores_tool_call_ids() -> None:
    key = cache_key(make_context(messages=make_call_messages("x1", "x1")))
    assert key == cache_key(make_context(messages=make_call_messages("y2", "y2")))
    assert key != cache_key(make_context(messages=make_call_messages("x1", "other")))


def make_call_events(tool: str, **changes: Any) -> list[Event]:
    started = ToolCallStarted(step=1, call_id=tool, server="tools", tool=tool, arguments={})
    finished = ToolFinished(call_id=tool, outcome="ok", content=[], structured={"results": [1, "two"]})
    return [started, msgspec.structs.replace(finished, **changes)]


def make_batch_results(*outcomes: str) -> dict[str, Any]:
    return {"structured": {"results": [{"tool": "a", "outcome": outcome} for outcome in outcomes]}}


CACHEABLE_CASES: list[tuple[bool, list[Event]]] = [
    (True, []),
    (True, make_call_events("a")),
    (False, make_call_events("a", outcome="error")),
    (False, make_call_events("a", outcome="unknown")),
    (False, make_call_events("writes")),
    (False, make_call_events("unknown_tool")),
    (True, make_call_events(BATCH, **make_batch_results("ok", "ok"))),
    (False, make_call_events(BATCH, **make_batch_results("ok", "error"))),
    (True, [ModelRetry(step=1, reason="model_unavailable", attempt=1)]),
    (False, [ModelRetry(step=1, reason="model_unavailable", attempt=1, model="another")]),
]


@pytest.mark.parametrize(("cacheable", "events"), CACHEABLE_CASES)
def test_only_answers_from_successful_read_only_calls_are_cacheable(cacheable: bool, events: list[Event]) -> None:
    tools = (spec("a", read_only=True), spec(BATCH, read_only=True), spec("writes"))
    entries = [JournalEntry(number, event, b"") for number, event in enumerate(events, 1)]
    assert is_cacheable("stop", entries, tools) is cacheable
    assert is_cacheable("step_limit", entries, tools) is False
