"""Tests of a model's refusals that are read again."""

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.gateway.api.test_odd_streams import REFUSAL, complete
from tests.gateway.api.test_upstream_errors import PROVIDERS
from tests.scripted_model import ScriptedModelServer, serve_scripted_model
from tests.stack import Gateway, ServeSharedGateway

USER = {"role": "user", "content": "Help me."}
WORDS = "I cannot help."
PARTS = [{"type": "refusal", "refusal": WORDS}]


@pytest.fixture(scope="module")
async def model() -> AsyncGenerator[ScriptedModelServer]:
    async with serve_scripted_model() as server:
        yield server


@pytest.fixture(scope="module")
async def gateway(serve_shared_gateway: ServeSharedGateway, model: ScriptedModelServer) -> Gateway:
    settings: dict[str, Any] = PROVIDERS["openai"](model.url)
    return await serve_shared_gateway(**settings)


async def test_refusal_stays_one_when_only_the_stored_turn_is_left(
    gateway: Gateway, model: ScriptedModelServer
) -> None:
    model.script_answers(REFUSAL)
    first = (await gateway.post("/v1/responses", {"input": "Help me.", "x_gateway": {"tools": "none"}})).body
    before = (await gateway.get(f"/v1/responses/{first['id']}")).body
    connection = await asyncpg.connect(gateway.state.database.connector.dsn)
    try:
        deleted = await connection.execute(
            "DELETE FROM turn_events WHERE turn_id = $1", UUID(first["id"].removeprefix("resp_"))
        )
    finally:
        await connection.close()
    assert deleted != "DELETE 0"
    after = (await gateway.get(f"/v1/responses/{first['id']}")).body
    assert [item["content"] for item in after["output"]] == [PARTS]
    assert after["output"] == before["output"]
    assert after["status"] == before["status"] == "completed"


async def test_refusal_is_part_of_the_history(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(REFUSAL)
    first = (await gateway.post("/v1/responses", {"input": "Help me.", "x_gateway": {"tools": "none"}})).body
    model.script_answers()
    await gateway.post(
        "/v1/responses", {"input": "Why?", "x_gateway": {"tools": "none"}, "previous_response_id": first["id"]}
    )
    assert model.requests[0]["messages"][-2] == {"role": "assistant", "content": WORDS}


async def test_client_can_send_a_refusal_back(gateway: Gateway, model: ScriptedModelServer) -> None:
    model.script_answers(REFUSAL)
    message = (await complete(gateway, messages=[USER]))["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, WORDS)
    model.script_answers()
    turn = await complete(gateway, messages=[USER, message, {"role": "user", "content": "Why?"}])
    assert model.requests[0]["messages"][-2] == {"role": "assistant", "content": WORDS}
    response_id = turn["id"].replace("chatcmpl-", "resp_")
    items = (await gateway.get(f"/v1/responses/{response_id}/input_items")).body["data"]
    assert [item["content"] for item in items if item["role"] == "assistant"] == [PARTS]
