"""Legacy servers ask hosts of protocol 2026-07-28, between two requests."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import ElicitResult, InputRequiredResult

from gateway.api.mcp import suspended_calls
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_host_capabilities import Host
from tests.gateway.mcp_client import dual_era_server
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway, serve_asgi, serve_gateway

TOOL = "reserve_inline"


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator) -> AsyncGenerator[Gateway]:
    async with (
        serve_asgi(dual_era_server.create_app(modern=False)) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as running,
    ):
        yield running


async def call(host: Client, question: InputRequiredResult | None = None) -> Any:
    """Call the tool, with the answer to its question if given."""
    answers: Any = question and {
        key: ElicitResult(action="accept", content={"row": "b"}) for key in question.input_requests or {}
    }
    return await host.session.call_tool(
        TOOL, {}, input_responses=answers, request_state=question and question.request_state, allow_input_required=True
    )


async def test_question_during_a_call_of_a_legacy_server_reaches_a_current_host(gateway: Gateway) -> None:
    host = Host()
    async with connect_host(gateway, "auto", elicitation_callback=host.elicit) as client:
        assert get_text(await client.call_tool(TOOL, {})) == "accept {'row': 'front'}"
        assert get_text(await client.call_tool("reserve", {})) == "reserved in row front"
    assert host.questions == ["Where shall the seat be?"] * 2


async def test_sampling_during_a_call_of_a_legacy_server_reaches_a_current_host(gateway: Gateway) -> None:
    async with connect_host(gateway, "auto", sampling_callback=Host().sample) as client:
        assert get_text(await client.call_tool("sample_inline", {})) == "the model says Paris"


async def test_answer_is_taken_once_and_of_the_user_who_was_asked(gateway: Gateway) -> None:
    keyring = Keyring(gateway)
    for owner in ("ada", "bob"):
        await keyring.create_key(owner)
    options: dict[str, Any] = {"mode": "auto", "elicitation_callback": Host().elicit}
    async with (
        connect_host(gateway, headers=keyring.headers("ada"), **options) as ada,
        connect_host(gateway, headers=keyring.headers("bob"), **options) as bob,
    ):
        question = await call(ada)
        assert isinstance(question, InputRequiredResult)
        with pytest.raises(MCPError, match="requestState is not valid"):
            await call(bob, question)
        assert get_text(await call(ada, question)) == "accept {'row': 'b'}"
        with pytest.raises(MCPError, match="no longer waits"):
            await call(ada, question)


async def test_call_whose_question_is_not_answered_ends(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspended_calls, "ANSWER_SECONDS", 0.1)
    async with connect_host(gateway, "auto", elicitation_callback=Host().elicit) as host:
        question = await call(host)
        assert isinstance(question, InputRequiredResult)

        async def has_ended() -> bool:
            try:
                await call(host, question)
            except MCPError as error:
                return "no longer waits" in str(error)
            raise AssertionError("the call still waited")

        await eventually(lambda: not gateway.state.mcp._suspended._calls)
        assert await has_ended()


async def test_questions_beyond_the_bound_of_a_user_are_declined(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suspended_calls, "MAX_USER_SUSPENDED_CALLS", 1)
    async with connect_host(gateway, "auto", elicitation_callback=Host().elicit) as host:
        question = await call(host)
        assert isinstance(question, InputRequiredResult)
        assert get_text(await call(host)) == "decline None"
        assert get_text(await call(host, question)) == "accept {'row': 'b'}"
