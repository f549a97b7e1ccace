"""Redaction rules: stored text, tool arguments, time limits and validation."""

import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import asyncpg
import pytest
import regex

from gateway.config import ConfigError, load_settings
from gateway.domain.messages import Message, ToolCall, TurnOutcome, Usage
from gateway.simulator import Fault, Simulator
from gateway.store.journal import redaction
from gateway_runtime.redaction.redactor import Redactor, Rule, load_rules
from tests.eventually import eventually
from tests.stack import Gateway, serve_gateway

RULES = Path(__file__).parent.parent.parent.parent / "docs" / "redaction.toml"
EMAIL = "ada@lovelace.example"
CARD = "4111 1111 1111 1111"


@pytest.fixture
async def redacting_gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, redaction_rules=RULES) as gateway:
        yield gateway


async def dump_database(db: asyncpg.Connection) -> str:
    """Return all rows of the database as text."""
    tables = await db.fetch(
        "SELECT schemaname || '.' || tablename AS name FROM pg_tables WHERE schemaname IN ('public', 'tools')"
    )
    rows = [await db.fetch(f"SELECT t::text AS row FROM {table['name']} AS t") for table in tables]
    return "\n".join(row["row"] for table_rows in rows for row in table_rows)


async def test_redacted_text_is_not_stored_and_not_sent_to_tools(
    redacting_gateway: Gateway, db: asyncpg.Connection
) -> None:
    prompt = f"Add a task to write to {EMAIL} about card {CARD}"
    stream = await redacting_gateway.chat_stream(prompt, conversation_id="new", system=f"You help {EMAIL}.")
    assert stream.get_event_data("turn.completed")
    assert stream.get_event_data("tool.call")
    dump = await dump_database(db)
    assert "[email]" in dump
    assert EMAIL not in dump
    assert CARD not in dump
    titles = [row["title"] for row in await db.fetch("SELECT title FROM tools.tasks")]
    assert len(titles) == 1
    assert "[email]" in titles[0]
    direct_call = await redacting_gateway.post("/api/v1/tools/add_task", {"title": f"ring {EMAIL}"})
    assert "[email]" in direct_call.body["content"][0]["text"]
    turn = stream.get_event_data("turn.started")[0]["turn_id"]
    await redacting_gateway.post(f"/api/v1/turns/{turn}/feedback", {"rating": "up", "comment": f"from {EMAIL}"})
    assert EMAIL not in await dump_database(db)


async def test_questions_and_answers_are_redacted(redacting_gateway: Gateway, db: asyncpg.Connection) -> None:
    waiting_turn = (await redacting_gateway.chat(f"Add a task to write to {EMAIL}", approval="always")).body
    [question] = waiting_turn["inputs"]
    assert EMAIL not in await dump_database(db)
    answer = {"arguments": {"title": f"ring {EMAIL}"}}
    body = {"input_id": question["input_id"], "action": "accept", "content": answer}
    await redacting_gateway.post(f"/api/v1/turns/{waiting_turn['turn_id']}/input", body)

    async def is_finished() -> bool:
        turn = await redacting_gateway.get(f"/api/v1/turns/{waiting_turn['turn_id']}")
        return turn.body["status"] not in ("running", "waiting")

    await eventually(is_finished)
    assert [row["title"] for row in await db.fetch("SELECT title FROM tools.tasks")] == ["ring [email]"]
    dump = await dump_database(db)
    assert EMAIL not in dump
    assert "input.accept" in dump


async def test_text_split_over_stream_chunks_is_redacted(
    redacting_gateway: Gateway, simulator: Simulator, db: asyncpg.Connection
) -> None:
    answer = f"Write to {EMAIL}, please. And use the key gsk_abcdefghijklmnop0123."
    simulator.faults.add_faults(Fault(kind="text", text=answer, match="whom"))
    simulator.faults.add_faults(Fault(kind="split_frames", match="whom"))
    stream = await redacting_gateway.chat_stream("whom shall I write to?")
    assert stream.text == answer  # the caller gets the unredacted text
    dump = await dump_database(db)
    assert "Write to [email], please. And use the key [key]." in dump
    assert "lovelace" not in dump
    turn = stream.get_event_data("turn.started")[0]["turn_id"]
    async with redacting_gateway.session.get(f"{redacting_gateway.base_url}/api/v1/turns/{turn}/events") as response:
        replayed = (await response.read()).decode()
    assert "[email]" in replayed
    assert "lovelace" not in replayed


async def test_all_request_fields_are_stored_redacted(redacting_gateway: Gateway, db: asyncpg.Connection) -> None:
    personal_text = f"of {EMAIL}"
    schema = {
        "type": "object",
        "properties": {EMAIL: {"type": "integer", "maximum": 9007199254740991, "title": personal_text}},
    }
    response = await redacting_gateway.post(
        "/v1/responses",
        {
            "input": "hello",
            "instructions": personal_text,
            "metadata": {EMAIL: personal_text},
            "user": EMAIL,
            "tools": [{"type": "function", "name": "look", "description": personal_text, "parameters": schema}],
            "text": {"format": {"type": "json_schema", "name": "answer", "schema": schema}},
        },
    )
    assert response.status == 200, response.body
    assert response.body["instructions"] == personal_text  # the caller gets the unredacted text
    chat = await redacting_gateway.post(
        "/v1/chat/completions",
        {
            "model": response.body["model"],
            "user": EMAIL,
            "stop": [EMAIL],
            "metadata": {EMAIL: personal_text},
            "messages": [{"role": "user", "name": "ada@lovelace.example", "content": "hello"}],
        },
    )
    assert chat.status == 200, chat.body
    assert EMAIL not in await dump_database(db)
    stored_response = (await redacting_gateway.get(f"/v1/responses/{response.body['id']}")).body
    assert (stored_response["instructions"], stored_response["metadata"]) == ("of [email]", {"[email]": "of [email]"})
    maximum = stored_response["tools"][0]["parameters"]["properties"]["[email]"]["maximum"]
    assert maximum == 9007199254740991


def test_tool_arguments_are_redacted_in_keys_and_values() -> None:
    rules = load_rules(RULES)
    arguments = {"data": f"mail {EMAIL}", "blob": [EMAIL], EMAIL: 1, "x@lovelace.example": 2, "n": 4111111111111111}
    assert rules.redact_value(arguments) == {
        "data": "mail [email]",
        "blob": ["[email]"],
        "[email]": 1,
        "[email] 4": 2,
        "n": "[card]",
    }
    assert rules.redact_value([4111111111111111.0, -4111111111111111]) == ["[card]", "-[card]"]
    unmatched_values = [0, 7, True, None, 52.520008123456789, float("inf"), 1234567890123]
    assert rules.redact_value(unmatched_values) == unmatched_values


def test_only_base64_content_is_exempt_from_redaction() -> None:
    rules = load_rules(RULES)
    image = {"type": "image", "data": "sk/sk-abcdefghijklmnop==", "mimeType": "image/png"}
    file = {"type": "resource", "resource": {"uri": "a://b", "blob": "sk/sk-abcdefghijklmnop"}}
    assert rules.redact_blocks([image, file]) == [image, file]
    other_blocks = [
        image | {"data": EMAIL},
        {"type": "text", "text": "x", "data": EMAIL},
        {"type": "audio", "data": [EMAIL]},
    ]
    other_blocks += [{"type": "resource", "resource": {"uri": EMAIL, "blob": EMAIL}}, image | {"mimeType": EMAIL}]
    assert EMAIL not in json.dumps(rules.redact_blocks(other_blocks))


@pytest.mark.parametrize(
    "part", ["a", "eyJ-", "a@", "a.", "a@b", "sk-", "1", "1 ", "AB12", "AB12 CDE ", "eyJaaaaaaaa."]
)
def test_long_texts_are_redacted_in_linear_time(part: str) -> None:
    rules = load_rules(RULES)
    started_at = time.thread_time()
    text = part * (400_000 // len(part))
    redacted = rules.redact_text(f"{text} {EMAIL}")
    assert time.thread_time() - started_at < 10
    assert redacted.endswith(" [email]")


@pytest.mark.parametrize(
    "pattern",
    [r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", r"\beyJ[A-Za-z0-9_-]{8,}\.[\w-]+\.", r"(a|aa)+$", r"\d+\s*$", r"(\w+)+\s*$"],
)
def test_slow_redaction_rule_is_rejected_at_startup(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(f"[[rule]]\nname = 'slow'\npattern = '{pattern}'")
    with pytest.raises(ConfigError, match="slow: takes too long"):
        load_rules(path)


def test_too_deeply_nested_arguments_are_redacted_as_text() -> None:
    redactor = Redactor([Rule("email", regex.compile("ada@example.com"), "[email]")])
    deep = "[" * 5_000
    call = ToolCall("1", "tool", f'{deep}"ada@example.com"')
    outcome = TurnOutcome("failed", (Message("assistant", "", (call,)),), "", steps=1, usage=Usage(), duration_ms=0.0)
    (stored_message,) = redaction.redact_outcome(outcome, redactor).messages
    assert stored_message.tool_calls[0].arguments == f'{deep}"[email]"'


def test_text_that_times_out_a_rule_is_replaced_entirely() -> None:
    rules = Redactor([Rule("odd", regex.compile("(q|qq)+!"), "-"), Rule("email", regex.compile("ada@"), "[email]")])
    slow_text = "q" * 100 + " !"
    started_at = time.thread_time()
    assert rules.redact_text(slow_text) == "[odd]"
    assert rules.redact_value([slow_text] * 1000 + ["qq! ada@b"]) == ["[odd]"] * 1000 + ["- [email]b"]
    assert time.thread_time() - started_at < 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot read"),
        ("rule", "not valid TOML"),
        ("", "contains no"),
        ("[[rule]]\nname='a'", "needs a name"),
        ("[[rule]]\nname='a'\npattern='('", "a: "),
        ("[[rule]]\nname='a'\npattern='b'\nreplacement='\\9'", "a: "),
    ],
)
def test_invalid_redaction_rules_are_reported_at_startup(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "rules.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_rules(path)


def test_redaction_with_a_synchronous_journal_is_rejected() -> None:
    with pytest.raises(ConfigError, match="REDACTION_RULES"):
        load_settings(_env_file=None, redaction_rules=RULES, synchronous_journal=True)
