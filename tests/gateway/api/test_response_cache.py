"""The response cache, which answers repeated requests of an owner."""

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.simulator import Fault, Simulator
from gateway.store.database import Database
from gateway.store.response_cache import ResponseCacheStore
from tests.auth_helpers import Keyring
from tests.stack import Gateway, Reply, Stream, serve_gateway

CACHE_OPTIONS = {"cache": {"ttl": 60}}
SUM_PROMPT = "What is 23*19?"


def get_cache_status(reply: Reply) -> str | None:
    return reply.headers.get("x-gateway-cache")


async def test_repeated_request_is_a_cache_hit_without_a_model_call(gateway: Gateway, db: asyncpg.Connection) -> None:
    first = await gateway.chat(SUM_PROMPT, **CACHE_OPTIONS)
    request_count = len(gateway.simulator.requests)
    second = await gateway.chat(SUM_PROMPT, **CACHE_OPTIONS)
    assert (get_cache_status(first), first.body["cached"]) == ("miss", False)
    assert (get_cache_status(second), second.body["cached"]) == ("hit", True)
    assert len(gateway.simulator.requests) == request_count == 2
    assert second.body["response"] == first.body["response"]
    assert (second.body["finish_reason"], second.body["cost_usd"], second.body["tool_calls"]) == ("stop", 0.0, [])
    assert second.body["usage"]["total_tokens"] == 0
    assert second.body["turn_id"] != first.body["turn_id"]
    row = await db.fetchrow("SELECT * FROM turns WHERE id = $1", UUID(second.body["turn_id"]))
    assert row is not None
    assert (row["status"], row["prompt"], row["response"], row["cached"]) == (
        "completed",
        SUM_PROMPT,
        first.body["response"],
        True,
    )
    turn_view = (await gateway.get(f"/api/v1/turns/{second.body['turn_id']}")).body
    assert [message["role"] for message in turn_view["messages"]] == ["user", "assistant"]
    assert turn_view["cached"] is True
    total = (await gateway.get("/api/v1/usage")).body["total"]
    assert (total["turns"], total["cached_turns"], total["unpriced_turns"]) == (2, 1, 0)


async def test_cached_response_is_streamed(gateway: Gateway) -> None:
    first = await gateway.chat_stream(SUM_PROMPT, **CACHE_OPTIONS)
    second = await gateway.chat_stream(SUM_PROMPT, **CACHE_OPTIONS)
    assert (get_cache_status(first), get_cache_status(second)) == ("miss", "hit")
    assert [event.type for event in second.events] == [
        "turn.started",
        "text.delta",
        "step.completed",
        "turn.completed",
        None,
    ]
    assert [event.id for event in second.events] == [1, 2, 3, 4, None]
    assert second.text == first.text
    (end,) = second.get_event_data("turn.completed")
    assert (end["cached"], end["cost_usd"], end["steps"], end["usage"]["total_tokens"]) == (True, 0.0, 1, 0)
    assert end["first_token_ms"] is not None
    turn_id = second.headers["x-turn-id"]
    async with gateway.session.get(f"{gateway.base_url}/api/v1/turns/{turn_id}/events") as response:
        followed_events = [event async for event in Stream(response).read_events()]
        assert response.headers["x-gateway-cache"] == "hit"
    assert followed_events == second.events


async def test_cache_is_used_only_when_requested(gateway: Gateway, db: asyncpg.Connection) -> None:
    uncached = await gateway.chat(SUM_PROMPT)
    assert get_cache_status(uncached) is None
    assert await db.fetchval("SELECT count(*) FROM cached_responses") == 0
    await gateway.chat(SUM_PROMPT, **CACHE_OPTIONS)
    request_count = len(gateway.simulator.requests)
    assert (await gateway.chat(SUM_PROMPT)).body["cached"] is False
    assert len(gateway.simulator.requests) > request_count


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "What is 23*19? "}]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SUM_PROMPT}]},
        {"model": "openai/gpt-oss-20b"},
        {"temperature": 0.5},
        {"seed": 7},
        {"max_tokens": 400},
        {"system": "Be brief."},
        {"tools": ["calculator"]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"approval": "destructive"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_different_request_is_a_cache_miss(gateway: Gateway, change: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": SUM_PROMPT}], **CACHE_OPTIONS}
    await gateway.chat(**body)
    assert get_cache_status(await gateway.chat(**(body | change))) == "miss"
    assert get_cache_status(await gateway.chat(**(body | change))) == "hit"
    assert get_cache_status(await gateway.chat(**body)) == "hit"


async def test_fields_without_effect_on_the_answer_are_not_in_the_cache_key(gateway: Gateway) -> None:
    await gateway.chat(SUM_PROMPT, **CACHE_OPTIONS)
    other_fields = await gateway.chat(
        SUM_PROMPT, user="a label", on_disconnect="continue", cache={"ttl": 50}, conversation_id="new"
    )
    assert get_cache_status(other_fields) == "hit"
    assert other_fields.body["conversation_id"]


async def test_cached_responses_are_scoped_to_owner_and_permissions(keyring: Keyring) -> None:
    for owner in ("ada", "bob"):
        await keyring.create_key(owner)
    for owner, expected in (("ada", "miss"), ("bob", "miss"), ("ada", "hit"), ("bob", "hit")):
        assert get_cache_status(await keyring.chat(owner, SUM_PROMPT, **CACHE_OPTIONS)) == expected
    await keyring.create_key("ada")  # a second key of the same user
    assert get_cache_status(await keyring.chat("ada", SUM_PROMPT, **CACHE_OPTIONS)) == "hit"
    await keyring.create_key("ada", tools=("calculator",))  # a key with fewer permissions
    assert get_cache_status(await keyring.chat("ada", SUM_PROMPT, **CACHE_OPTIONS)) == "miss"


async def test_response_of_a_fallback_model_is_not_cached(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection
) -> None:
    simulator.faults.add_faults(Fault(kind="status", status=503, match="gpt-oss-120b"))
    settings = {"model_fallbacks": "openai/gpt-oss-20b", "model_retries": 0}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        assert (await gateway.chat("Hello", **CACHE_OPTIONS)).status == 200
    assert await db.fetchval("SELECT count(*) FROM cached_responses") == 0


async def test_cache_key_contains_the_history_without_call_ids(gateway: Gateway) -> None:
    replies: list[Reply] = []
    for opening in (SUM_PROMPT, SUM_PROMPT, "What is 23*20?"):
        conversation = (await gateway.chat(opening, conversation_id="new")).body
        replies.append(
            await gateway.chat("Thank you.", conversation_id=conversation["conversation_id"], **CACHE_OPTIONS)
        )
    assert [get_cache_status(reply) for reply in replies] == ["miss", "hit", "miss"]
    continued = await gateway.chat("What did I ask?", conversation_id=replies[1].body["conversation_id"])
    assert "Thank you." in continued.body["response"]


@pytest.mark.parametrize(
    ("prompt", "body", "fault"),
    [
        ("Add a task to buy milk", {}, None),  # a call with side effects
        ("What is 1/0*1?", {}, None),  # a failed call
        (SUM_PROMPT, {"approval": "always"}, None),  # waits for a person
        ("count to 100000", {}, Fault(kind="mid_stream_error", after_chunks=3, times=3)),  # failed
    ],
)
async def test_unrepeatable_responses_are_not_cached(
    gateway: Gateway, db: asyncpg.Connection, prompt: str, body: dict[str, Any], fault: Fault | None
) -> None:
    if fault is not None:
        gateway.simulator.faults.add_faults(fault)
    reply = await gateway.chat_stream(prompt, **body, **CACHE_OPTIONS)
    assert reply.events[1:]
    assert await db.fetchval("SELECT count(*) FROM cached_responses") == 0


async def test_cached_response_expires(gateway: Gateway, db: asyncpg.Connection) -> None:
    async def age_entries(seconds: int) -> None:
        await db.execute(
            "UPDATE cached_responses SET kept_at = kept_at - make_interval(secs => $1),"
            " expires_at = expires_at - make_interval(secs => $1)",
            seconds,
        )

    await gateway.chat(SUM_PROMPT, cache={"ttl": 60})
    await age_entries(30)
    # The entry is older than this request allows; the new response replaces it.
    assert get_cache_status(await gateway.chat(SUM_PROMPT, cache={"ttl": 20})) == "miss"
    await age_entries(5)
    assert get_cache_status(await gateway.chat(SUM_PROMPT, cache={"ttl": 3600})) == "hit"
    await age_entries(20)
    assert get_cache_status(await gateway.chat(SUM_PROMPT, cache={"ttl": 3600})) == "miss"  # older than its own ttl


async def test_deleting_a_turn_deletes_its_cached_response(gateway: Gateway) -> None:
    cached = (await gateway.chat(SUM_PROMPT, conversation_id="new", **CACHE_OPTIONS)).body
    path = f"{gateway.base_url}/api/v1/conversations/{cached['conversation_id']}"
    async with gateway.session.delete(path) as response:
        assert response.status == 204
    assert get_cache_status(await gateway.chat(SUM_PROMPT, **CACHE_OPTIONS)) == "miss"


async def test_structured_response_is_cached(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    structured = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    first, second = [await gateway.chat("Say a number: 7", **structured, **CACHE_OPTIONS) for _ in range(2)]
    assert (get_cache_status(first), get_cache_status(second)) == ("miss", "hit")
    assert first.body["response"] == second.body["response"] != ""


async def test_openai_clients_request_the_cache_in_x_gateway(gateway: Gateway) -> None:
    body = {"messages": [{"role": "user", "content": SUM_PROMPT}], "x_gateway": CACHE_OPTIONS}
    first = await gateway.post("/v1/chat/completions", body)
    second = await gateway.post("/v1/chat/completions", body)
    assert (get_cache_status(first), get_cache_status(second)) == ("miss", "hit")
    assert "cached" not in first.body["x_gateway"]
    assert (second.body["x_gateway"]["cached"], second.body["x_gateway"]["cost_usd"]) == (True, 0.0)
    assert second.body["choices"][0]["message"]["content"] == first.body["choices"][0]["message"]["content"]
    assert second.body["usage"]["total_tokens"] == 0
    url = f"{gateway.base_url}/v1/chat/completions"
    async with gateway.session.post(url, json=body | {"stream": True}) as response:
        assert response.headers["x-gateway-cache"] == "hit"
        frames = (await response.text()).split("\n\n")
    assert '"finish_reason":"stop"' in frames[-3]
    assert '"cached":true' in frames[-3]
    assert frames[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/chat", {"cache": {"ttl": 0}}),
        ("/api/v1/chat", {"cache": {"ttl": 10**9}}),
        ("/api/v1/chat", {"cache": {"ttl": 60, "unknown": 1}}),
        ("/api/v1/chat", {"cache": {"ttl": 60}, "store": False}),
        ("/v1/chat/completions", {"x_gateway": {"cache": {"ttl": 0}}}),
        ("/v1/chat/completions", {"x_gateway": CACHE_OPTIONS, "store": False}),
    ],
)
async def test_invalid_cache_options_are_rejected(shared_gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    reply = await shared_gateway.post(path, {"messages": [{"role": "user", "content": "Hello"}], **body})
    assert reply.status in (400, 422)
    assert "cache" in reply.body["error"]["message"]


async def test_idempotent_repeat_reports_the_cache_status_of_its_turn(gateway: Gateway) -> None:
    body = {"messages": [{"role": "user", "content": SUM_PROMPT}], **CACHE_OPTIONS}
    await gateway.post("/api/v1/chat", body)
    for _ in range(2):
        reply = await gateway.post("/api/v1/chat", body, headers={"Idempotency-Key": "one"})
        assert (get_cache_status(reply), reply.body["cached"]) == ("hit", True)


async def test_cache_size_is_limited_per_owner_and_in_total(
    gateway: Gateway, database_url: str, db: asyncpg.Connection
) -> None:
    turns = [UUID((await gateway.chat(f"Hello {n}")).body["turn_id"]) for n in range(5)]
    other = (await gateway.chat("Hi")).body["turn_id"]
    await db.execute("UPDATE turns SET owner = 'bob' WHERE id = $1", UUID(other))
    database = Database(database_url)
    try:
        store = ResponseCacheStore(database, max_per_owner=3)
        for n, turn_id in enumerate(turns):
            await store.save_answer("local", bytes([n]), turn_id, 60)
        await store.save_answer("bob", b"x", UUID(other), 60)
        await store.save_answer("unknown", b"y", UUID(int=1), 60)  # of a deleted turn
        keys = [row["key"] for row in await db.fetch("SELECT key FROM cached_responses ORDER BY kept_at")]
        assert keys == [b"\x02", b"\x03", b"\x04", b"x"]
        await db.execute("UPDATE cached_responses SET expires_at = now() WHERE key = $1", b"\x03")
        await ResponseCacheStore(database, max_total=2).save_answer("local", b"\x07", turns[0], 60)
        keys = [row["key"] for row in await db.fetch("SELECT key FROM cached_responses ORDER BY kept_at")]
        assert keys == [b"x", b"\x07"]
    finally:
        await database.close()
