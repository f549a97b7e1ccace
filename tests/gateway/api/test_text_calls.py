"""Tests of tool calls in the text of models with native calls."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gateway.simulator import Simulator
from tests.gateway.api.test_malformed_calls import ENTRIES, serve_recorder, sort_calls
from tests.scripted_model import ScriptedAnswer, ScriptedModelServer, serve_scripted_model, stream_deltas, stream_text
from tests.stack import Gateway, serve_gateway

CALL = "<function=list_tasks>\n<parameter=status>\nopen\n</parameter>\n</function>\n</tool_call>"
JSON_CALL = '{"name": "list_tasks", "arguments": {"status": "open"}}'


MARKED = [
    f"[TOOL_REQUEST]{JSON_CALL}[END_TOOL_REQUEST]",
    f"<TOOLCALLS>[{JSON_CALL}]</TOOLCALLS>",
    f"functools[{JSON_CALL}]",
    'assistantcommentary to=functions.list_tasksjson{"status": "open"}',
    '```tool_code\nprint(list_tasks(status="open"))\n```',
    "<start_function_call>call:list_tasks{status:<escape>open<escape>}<end_function_call>",
    (
        '< \uff5c DSML \uff5c invoke name="list_tasks">\n< \uff5c DSML \uff5c parameter name="status">open'
        "</ \uff5c DSML \uff5c parameter>\n</ \uff5c DSML \uff5c invoke>"
    ),
]


class World:
    """A gateway, the scripted model and the calls that the tools recorded."""

    def __init__(self, gateway: Gateway, model: ScriptedModelServer, calls: list[dict[str, Any]]) -> None:
        self.gateway = gateway
        self.model = model
        self.calls = calls

    async def chat(self, answer: ScriptedAnswer, **body: Any) -> str:
        """Send one message; return the text of all steps."""
        self.calls.clear()
        self.model.script_answers(answer)
        reply = await self.gateway.chat_stream("Run it.", store=False, **body)
        assert reply.get_event_data("turn.completed"), reply.events
        return "".join(delta["text"] for delta in reply.get_event_data("text.delta"))


@pytest.fixture
async def world(database_url: str, simulator: Simulator) -> AsyncGenerator[World]:
    calls: list[dict[str, Any]] = []
    async with (
        serve_scripted_model() as model,
        serve_recorder(calls) as tools_url,
        serve_gateway(database_url, simulator, tools_url, groq_base_url=model.url) as gateway,
    ):
        yield World(gateway, model, calls)


def stream_pieces(text: str, size: int = 3, *, finish_reason: str = "stop") -> ScriptedAnswer:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return stream_deltas(*({"content": piece} for piece in pieces), finish_reason=finish_reason)


CALLS = [
    CALL,
    JSON_CALL,
    f"[{JSON_CALL}]",
    f"\n{CALL}\n",
    f"<tool_call>\n{JSON_CALL}\n</tool_call>",
    *MARKED,
]


async def test_text_that_is_only_a_call_runs_and_is_not_shown(world: World) -> None:
    wrong: dict[str, Any] = {}
    for text in CALLS:
        told = await world.chat(stream_pieces(text))
        if told != "All done." or world.calls != [{"name": "list_tasks", "arguments": {"status": "open"}}]:
            wrong[text] = told, world.calls.copy()
    assert wrong == {}


TEXTS = [
    f"{JSON_CALL}\n\nThis lists the open tasks.",
    f"You would write {CALL}",
    f"{CALL} is how it is written.",
    '{"name": "no_such_tool", "arguments": {}}',
    '{"name": "list_tasks", "arguments": {"status": "unknown"}}',
    '{"name": "Ada", "age": 36}',
    '{"name": "list_tasks", "arguments": {"status": "op',
    '{"name": "list_tasks", "arguments": {"page": 1}}',
    '{"name": "list_tasks", "arguments": {}, "explanation": "It lists the tasks."}',
    '{"name": "list_tasks", "parameters": {"properties": {"status": {"type": "string"}}}}',
    '{"name": "add_task", "args": "Buy milk"}',
    f'[{JSON_CALL}, {{"name": "no_such_tool", "arguments": {{}}}}]',
    f"<tool_call>{JSON_CALL}</tool_call><tool_call>and so on</tool_call>",
    '<tool_call>{"name": "add_task", "arguments": {"title": ...}}</tool_call>',
    "<function",
    "<b>bold</b>",
]


async def test_text_that_is_not_only_a_call_is_shown_whole(world: World) -> None:
    wrong: dict[str, Any] = {}
    for text in TEXTS:
        told = await world.chat(stream_pieces(text))
        if told != text or world.calls:
            wrong[text] = told, world.calls.copy()
    assert wrong == {}


async def test_call_that_reached_the_token_limit_is_shown_as_text(world: World) -> None:
    assert await world.chat(stream_pieces(CALL, finish_reason="length")) == CALL
    assert world.calls == []


async def test_text_beyond_the_limit_is_shown_before_it_ends(world: World) -> None:
    text = '{"name": "add_task", "arguments": {"title": "' + "x" * 3_000 + '"}}'
    assert await world.chat(stream_pieces(text, 100)) == text
    assert world.calls == []


async def test_text_of_a_request_with_a_response_format_never_becomes_a_call(world: World) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    text = await world.chat(stream_text(JSON_CALL), response_format=response_format)
    assert json.loads(text) == json.loads(JSON_CALL)
    assert world.calls == []


async def test_call_in_a_text_follows_the_approval_rule(world: World) -> None:
    reply = await world.gateway.chat_stream("Run it.", approval="always")
    world.model.script_answers(stream_pieces(CALL))
    reply = await world.gateway.chat_stream("Run it.", approval="always")
    assert [question["kind"] for question in reply.get_event_data("input.required")] == ["approval"]
    assert world.calls == []


@pytest.mark.timeout(300)
async def test_calls_of_the_corpus_in_a_text_run_as_meant_or_are_shown(world: World) -> None:
    wrong: dict[str, Any] = {}
    count = 0
    for entry in ENTRIES:
        if entry["form"] != "generation" or not entry["text"]:
            continue
        text = await world.chat(stream_pieces(entry["text"], 7))
        count += bool(world.calls)
        is_call = text == "All done." and sort_calls(world.calls) == sort_calls(entry["expect"].get("calls", []))
        if not is_call and (world.calls or text != entry["text"]):
            wrong[entry["id"]] = text, world.calls.copy()
    assert wrong == {}
    assert count > 90


@pytest.mark.parametrize(
    "answer", ['```json\n{"a": 1}\n```', '<think>\nhm\n</think>\n{"a": 1}', '<think>{}</think>```\n{"a": 1}```']
)
async def test_form_is_freed_of_its_fence_and_thoughts(world: World, answer: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert await world.chat(stream_text(answer), response_format=response_format) == '{"a": 1}'
    assert len(world.model.requests) == 1
