"""Conversations that do not fit into the model's context."""

import base64
import json
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.llm.tokenizers.harmony import HarmonyTokenizer
from gateway.simulator import Fault, Simulator, SimulatorSettings, serve_simulator
from tests.gateway.api.test_turns import read_turn_events
from tests.stack import Event, Gateway, Reply, insert_rows, serve_gateway

RULES = Path(__file__).parent.parent.parent.parent / "docs" / "redaction.toml"
WINDOW = 4_000
FILLER = "This sentence fills the context of a small model. " * 60
"""About 600 tokens."""
QUESTION = f"What is my name? {FILLER}"
EMAIL = "ada@lovelace.example"


@pytest.fixture
async def small_simulator() -> AsyncGenerator[Simulator]:
    settings = SimulatorSettings(tokens_per_second=0, first_token_delay=0, context_window=WINDOW)
    async with serve_simulator(settings) as running:
        yield running


@pytest.fixture
async def small_gateway(database_url: str, small_simulator: Simulator) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, small_simulator, None, redaction_rules=RULES) as running:
        yield running


async def say(gateway: Gateway, text: str) -> Reply:
    reply = await gateway.chat_stream(text, conversation_id="long")
    assert reply.status == 200, reply.body
    assert reply.get_event_data("turn.completed"), reply.events
    return reply


async def fill(gateway: Gateway, first: str = "My name is Ada.") -> None:
    """Fill the context: the next turn does not fit."""
    for text in (first, "One.", "Two."):
        reply = await say(gateway, f"{text} {FILLER}")
        assert reply.get_event_data("history.summarized") == []
        assert "history" not in reply.get_event_data("turn.started")[0]


def list_summary_requests(simulator: Simulator) -> list[dict[str, Any]]:
    return [request for request in simulator.requests if is_summary_request(request)]


def is_summary_request(request: dict[str, Any]) -> bool:
    return str(request["messages"][-1]["content"]).startswith("<conversation>")


def get_event(reply: Reply, kind: str) -> dict[str, Any]:
    [data] = reply.get_event_data(kind)
    return data


async def test_turns_that_do_not_fit_are_summarized_by_the_model_once(
    small_gateway: Gateway, db: asyncpg.Connection
) -> None:
    simulator = small_gateway.simulator
    await fill(small_gateway)
    reply = await say(small_gateway, QUESTION)
    assert reply.text.startswith("Your name is Ada.")

    started, summarized = get_event(reply, "turn.started"), get_event(reply, "history.summarized")
    kept, replaced = started["history"]["turns"], started["history"]["summarized_turns"]
    assert started["history"] == {"turns": kept, "summarized_turns": replaced, "summary": "new", "is_cut": False}
    assert (kept + replaced, summarized["turns"]) == (3, replaced)
    assert kept >= 1
    assert f"The first {replaced} turns" in started["warnings"][0]
    assert "My name is Ada." in summarized["text"]
    assert "error" not in summarized
    assert [event.type for event in reply.events][:2] == ["turn.started", "history.summarized"]

    [request] = list_summary_requests(simulator)
    assert request["model"] == started["model"]
    assert "tools" not in request
    asked = simulator.requests[-1]
    assert [message["role"] for message in asked["messages"][:2]] == ["system", "user"]
    assert summarized["text"] in asked["messages"][1]["content"]
    assert len(asked["messages"]) == 2 + 2 * kept + 1

    step, completed = get_event(reply, "step.completed"), get_event(reply, "turn.completed")
    assert (step["step"], completed["steps"]) == (1, 1)
    tokens = summarized["usage"]["total_tokens"]
    assert tokens > 500
    assert completed["usage"]["total_tokens"] == step["usage"]["total_tokens"] + tokens
    assert completed["cost_usd"] == pytest.approx(step["cost_usd"] + summarized["cost_usd"])
    counted = await db.fetchval("SELECT total_tokens FROM turn_usage ORDER BY at DESC LIMIT 1")
    assert counted == completed["usage"]["total_tokens"]

    following = await say(small_gateway, "What is my name?")
    assert following.text.startswith("Your name is Ada.")
    history = get_event(following, "turn.started")["history"]
    assert history == {"turns": kept + 1, "summarized_turns": replaced, "summary": "stored", "is_cut": False}
    assert len(list_summary_requests(simulator)) == 1


@pytest.mark.faults
async def test_later_summary_contains_the_earlier_one(small_gateway: Gateway) -> None:
    await fill(small_gateway)
    counts: list[int] = []
    for text in ("Three.", "Four.", "Five.", "Six."):
        reply = await say(small_gateway, f"{text} {FILLER}")
        counts += [data["turns"] for data in reply.get_event_data("history.summarized")]
    assert len(counts) >= 2
    assert counts == sorted(set(counts))
    assert len(counts) == len(list_summary_requests(small_gateway.simulator))
    assert (await say(small_gateway, "What is my name?")).text.startswith("Your name is Ada.")


async def test_failed_summary_leaves_turns_out_and_says_so(small_gateway: Gateway) -> None:
    simulator = small_gateway.simulator
    await fill(small_gateway)
    refusal = {"error": {"message": "No.", "type": "invalid_request_error"}}
    simulator.faults.add_faults(Fault(kind="status", status=400, body=refusal, match="<conversation>", times=9))
    reply = await say(small_gateway, QUESTION)
    assert reply.text.startswith("You have not told me your name.")
    summarized = get_event(reply, "history.summarized")
    assert (summarized["text"], summarized["turns"]) == (None, 0)
    assert summarized["cut_turns"] == get_event(reply, "turn.started")["history"]["summarized_turns"]
    assert summarized["error"]["code"] == "model_request_refused"
    simulator.faults.clear_faults()
    again = await say(small_gateway, QUESTION)
    assert again.text.startswith("Your name is Ada.")
    assert get_event(again, "history.summarized")["cut_turns"] == 0


@pytest.mark.faults
async def test_worker_that_takes_over_uses_the_stored_summary(
    database_url: str, small_simulator: Simulator, small_gateway: Gateway
) -> None:
    await fill(small_gateway)
    async with AsyncExitStack() as stack:
        second_worker = await stack.enter_async_context(serve_gateway(database_url, small_simulator, None))
        small_simulator.faults.add_faults(Fault(kind="slow_first_token", match="What is my"))
        body = {"conversation_id": "long", "on_disconnect": "continue"}
        async with small_gateway.stream(QUESTION, **body) as stream:
            turn_id = stream.response.headers["x-turn-id"]
            await stream.read_until("history.summarized")
            await small_simulator.wait_until(lambda s: not is_summary_request(s.requests[-1]) and s.open_streams > 0)
            await small_gateway.state.stop(0)
            await stream.read_until("stream.closing")
        events = await read_turn_events(second_worker, turn_id)
    assert "Your name is Ada." in "".join(event.data["text"] for event in events if event.type == "text.delta")
    assert len(list_summary_requests(small_simulator)) == 1
    [summarized] = list_data(events, "history.summarized")
    [completed], [step] = list_data(events, "turn.completed"), list_data(events, "step.completed")
    tokens = step["usage"]["total_tokens"] + summarized["usage"]["total_tokens"]
    assert completed["usage"]["total_tokens"] >= tokens


def list_data(events: list[Event], kind: str) -> list[dict[str, Any]]:
    return [event.data for event in events if event.type == kind]


@pytest.mark.faults
async def test_fork_and_replay_use_the_summary_of_their_turn(small_gateway: Gateway) -> None:
    simulator = small_gateway.simulator
    await fill(small_gateway)
    turn_id = get_event(await say(small_gateway, QUESTION), "turn.started")["turn_id"]
    forked = await small_gateway.post(f"/api/v1/turns/{turn_id}/fork", {"after_step": 0, "message": "What is my name?"})
    replayed = await small_gateway.post(f"/api/v1/turns/{turn_id}/replay", {"model": "openai/gpt-oss-20b"})
    for reply in (forked, replayed):
        assert reply.status == 200, reply.body
        assert reply.body["response"].startswith("Your name is Ada.")
    assert len(list_summary_requests(simulator)) == 1
    next_turn = await small_gateway.chat("What is my name?", parent_turn_id=forked.body["turn_id"])
    assert next_turn.body["response"].startswith("Your name is Ada.")
    assert len(list_summary_requests(simulator)) == 1


@pytest.mark.faults
async def test_texts_that_are_longer_than_the_window_are_shortened_for_the_summary(
    database_url: str, small_simulator: Simulator, simulator: Simulator
) -> None:
    async with serve_gateway(database_url, simulator, None) as gateway:
        await say(gateway, f"My name is Ada. {'很长的文本' * 8_000}")
    async with serve_gateway(database_url, small_simulator, None) as gateway:
        reply = await say(gateway, "What is my name?")
    assert reply.text.startswith("Your name is Ada.")
    assert get_event(reply, "history.summarized")["omitted_chars"] > 30_000
    [request] = list_summary_requests(small_simulator)
    assert len(request["messages"][-1]["content"]) < 6_000


@pytest.mark.faults
async def test_summary_is_stored_with_redaction_rules(small_gateway: Gateway, db: asyncpg.Connection) -> None:
    await fill(small_gateway, f"My address is {EMAIL}.")
    reply = await say(small_gateway, f"Go on. {FILLER}")
    assert EMAIL not in json.dumps(await db.fetch("SELECT history_summary::text FROM turns"), default=str)
    turn_id = get_event(reply, "turn.started")["turn_id"]
    [stored] = list_data(await read_turn_events(small_gateway, turn_id), "history.summarized")
    row = await db.fetchval("SELECT history_summary->>'text' FROM turns WHERE history_summary IS NOT NULL")
    assert row == stored["text"]


@pytest.mark.faults
async def test_conversation_of_more_turns_than_are_loaded_is_summarized(
    small_gateway: Gateway, db: asyncpg.Connection
) -> None:
    await say(small_gateway, "My name is Ada.")
    [(first, conversation)] = await db.fetch("SELECT id, conversation_id FROM turns")
    messages = json.dumps([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
    rows = [(f"01a1fc00-0000-7000-8000-{number:012}", conversation, messages) for number in range(199)]
    parents = [first, *(row[0] for row in rows[:-1])]
    await insert_rows(
        small_gateway,
        "INSERT INTO turns (id, conversation_id, parent_id, owner, status, prompt, response, messages, model_name, "
        "parameters, options) "
        "VALUES ($1::uuid, $2, $4::uuid, 'local', 'completed', 'x', 'y', $3::jsonb, 'm', '{}', '{}')",
        [(*row, str(parent)) for row, parent in zip(rows, parents, strict=True)],
    )
    reply = await say(small_gateway, "What is my name?")
    assert reply.text.startswith("Your name is Ada.")
    history = get_event(reply, "turn.started")["history"]
    assert history["turns"] + history["summarized_turns"] == 200
    assert (history["turns"] <= 100, history["summary"], history["is_cut"]) == (True, "new", False)
    [request] = list_summary_requests(small_gateway.simulator)
    assert "My name is Ada." in request["messages"][-1]["content"]


@pytest.mark.faults
async def test_budget_counts_the_summary(database_url: str, small_simulator: Simulator, db: asyncpg.Connection) -> None:
    async with serve_gateway(database_url, small_simulator, None, budget_tokens_per_day=1_000_000) as gateway:
        await fill(gateway)
        reply = await say(gateway, QUESTION)
        summarized, completed = get_event(reply, "history.summarized"), get_event(reply, "turn.completed")
        view = (await gateway.get("/api/v1/budget")).body
        total = await db.fetchval("SELECT sum(total_tokens) FROM turn_usage")
        assert view["user"]["tokens_today"] == total
        assert completed["usage"]["total_tokens"] > summarized["usage"]["total_tokens"] > 0


@pytest.mark.faults
async def test_history_is_counted_by_the_tokenizer_of_the_model(
    database_url: str, small_simulator: Simulator, tmp_path: Path
) -> None:
    """Send texts of 1.3 characters per token.

    The estimate says 4, so it would send more than fits.
    """
    text = base64.b64encode(random.Random(22).randbytes(1_500)).decode()
    async with serve_gateway(database_url, small_simulator, None, gateway_data_dir=tmp_path) as gateway:
        figures: list[tuple[int, int]] = []
        for model, conversation in (("openai/gpt-oss-20b", "counted"), ("qwen/qwen3.8-27b", "estimated")):
            summaries = 0
            for prompt in (f"Keep: {text}", f"Keep: {text}", "Go on."):
                reply = await gateway.chat_stream(prompt, conversation_id=conversation, model=model)
                assert reply.get_event_data("turn.completed"), reply.events
                summaries += len(reply.get_event_data("history.summarized"))
            body = {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": text}]}
            counted = await gateway.post("/v1/messages/count_tokens", body, headers={"X-Gateway-Tools": "none"})
            figures.append((summaries, counted.body["input_tokens"]))
    assert [summaries for summaries, _ in figures] == [1, 0]
    assert figures[0][1] > 2 * figures[1][1]


@pytest.mark.faults
async def test_request_for_a_summary_fits_by_the_tokenizer_of_the_model(
    database_url: str, simulator: Simulator, small_simulator: Simulator, tmp_path: Path
) -> None:
    tokenizer = HarmonyTokenizer.find(None, tmp_path)
    assert tokenizer is not None
    async with serve_gateway(database_url, simulator, None, gateway_data_dir=tmp_path) as gateway:
        for number in range(3):
            text = base64.b64encode(random.Random(number).randbytes(6_000)).decode()
            await say(gateway, f"Keep: {text}")
    async with serve_gateway(database_url, small_simulator, None, gateway_data_dir=tmp_path) as gateway:
        reply = await say(gateway, "Go on.")
    assert "error" not in get_event(reply, "history.summarized")
    [request] = list_summary_requests(small_simulator)
    counted = sum(tokenizer.count_text(message["content"]) for message in request["messages"])
    assert WINDOW / 2 < counted + request.get("max_completion_tokens", request.get("max_tokens", 0)) <= WINDOW
