"""Servers that take tokens exchanged for the callers' own (RFC 8693)."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse
from structlog.testing import capture_logs

from gateway.mcp_client.oauth.grants import stored_exchange
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.gateway.api.test_key_permissions import connect_mcp_client
from tests.stack import Gateway
from tests.token_exchange import CLIENT_SECRET, ExchangeStack, serve_exchange, serve_exchanging_gateway


@pytest.fixture
async def stack() -> AsyncGenerator[ExchangeStack]:
    async with serve_exchange() as stack:
        yield stack


@pytest.fixture
async def gateway(
    database_url: str, simulator: Simulator, stack: ExchangeStack, tmp_path: Path
) -> AsyncGenerator[Gateway]:
    async with serve_exchanging_gateway(database_url, simulator, stack, tmp_path) as gateway:
        yield gateway


async def list_tools(gateway: Gateway, headers: dict[str, str]) -> list[str]:
    reply = await gateway.get("/api/v1/tools", headers=headers)
    return [tool["name"] for tool in reply.body["tools"] if tool["server"] == "s"]


async def chat(gateway: Gateway, headers: dict[str, str], tool: str) -> str:
    body = {"messages": [{"role": "user", "content": f"call {tool} {{}}"}]}
    return str((await gateway.post("/api/v1/chat", body, headers=headers)).body)


async def test_first_chat_of_each_user_uses_the_users_own_identity(gateway: Gateway, stack: ExchangeStack) -> None:
    sign_ins = {user: stack.sign_in(user) for user in ("ada", "bob")}
    for user in ("ada", "bob", "ada", "bob"):
        assert f"the safe of {user}" in await chat(gateway, sign_ins[user], f"s_open_{user}")
        assert await list_tools(gateway, sign_ins[user]) == [f"s_open_{user}"]
    for user, other in (("ada", "bob"), ("bob", "ada")):
        assert "the safe of" not in await chat(gateway, sign_ins[user], f"s_open_{other}")
    assert len(stack.forms) == 2
    assert [form["resource"] for form in stack.forms] == [stack.resource] * 2
    own_tokens = {headers["Authorization"].removeprefix("Bearer ") for headers in sign_ins.values()}
    assert not own_tokens & set(stack.received)
    assert "" not in stack.received


async def test_callers_at_once_share_one_exchange_each(gateway: Gateway, stack: ExchangeStack) -> None:
    sign_ins = {user: stack.sign_in(user) for user in ("ada", "bob", "eve")}
    users = [user for user in sign_ins for _ in range(6)]
    answers = await asyncio.gather(*(chat(gateway, sign_ins[user], f"s_open_{user}") for user in users))
    for user, answer in zip(users, answers, strict=True):
        assert f"the safe of {user}" in answer
    assert len(stack.forms) == 3


async def test_api_key_of_the_same_user_is_refused_plainly(gateway: Gateway, stack: ExchangeStack) -> None:
    keyring = Keyring(gateway)
    await keyring.create_key("ada")
    started_at = time.monotonic()
    assert await list_tools(gateway, keyring.headers("ada")) == []
    assert await list_tools(gateway, stack.sign_in("ada")) == ["s_open_ada"]
    reply = await keyring.post("ada", "/api/v1/tools/s_open_ada", {})
    assert "the safe of" not in str(reply.body)
    assert reply.status == 404 or "an API key is none" in str(reply.body), reply.body
    assert time.monotonic() - started_at < 14  # a connection for one user has 15 seconds


async def test_expiring_token_is_exchanged_again_and_a_revoked_one_is_replaced(
    gateway: Gateway, stack: ExchangeStack
) -> None:
    stack.lifetime = 1
    headers = stack.sign_in("ada")
    assert "the safe of ada" in await chat(gateway, headers, "s_open_ada")
    await asyncio.sleep(1.1)
    stack.lifetime = 600
    assert "the safe of ada" in await chat(gateway, headers, "s_open_ada")
    exchanged = len(stack.forms)
    assert exchanged >= 2
    stack.revoked = set(stack.received)
    assert "the safe of ada" in await chat(gateway, headers, "s_open_ada")
    assert len(stack.forms) == exchanged + 1


async def test_refused_exchange_is_told_and_ends_with_a_new_token(gateway: Gateway, stack: ExchangeStack) -> None:
    headers = stack.sign_in("ada")
    assert "the safe of ada" in await chat(gateway, headers, "s_open_ada")
    stack.revoked = set(stack.received)

    async def refuse(_form: dict[str, str]) -> Response:
        return JSONResponse({"error": "invalid_grant", "error_description": "a-secret"}, status_code=400)

    stack.answer = refuse
    answer = await chat(gateway, headers, "s_open_ada")
    assert "refuses the user's own token" in answer
    assert "a-secret" not in answer
    stack.answer = None
    assert "the safe of ada" in await chat(gateway, stack.sign_in("ada"), "s_open_ada")


@pytest.mark.parametrize("kind", ["huge", "malformed", "same token", "other type", "other audience", "odd", "status"])
async def test_hostile_answer_of_the_token_endpoint_opens_nothing(
    gateway: Gateway, stack: ExchangeStack, kind: str
) -> None:
    async def send_blocks() -> AsyncGenerator[bytes]:
        for _ in range(64):
            yield b'{"access_token": "' + b"x" * 1024 * 1024

    async def answer(form: dict[str, str]) -> Response:
        token = stack.sign_server_token("ada")
        answers: dict[str, Any] = {
            "huge": lambda: StreamingResponse(send_blocks(), media_type="application/json"),
            "malformed": lambda: Response(b'{"access_token": ["x"]}', media_type="application/json"),
            "same token": lambda: stack.make_answer(form["subject_token"]),
            "other type": lambda: stack.make_answer(token, token_type="N_A"),
            "other audience": lambda: stack.make_answer(stack.sign_server_token("ada", aud="https://other.example")),
            "odd": lambda: stack.make_answer(f"{token}\r\nX-Evil: yes"),
            "status": lambda: Response(status_code=302, headers={"Location": f"{stack.url}/elsewhere"}),
        }
        return answers[kind]()

    stack.answer = answer
    headers = stack.sign_in("ada")
    assert await list_tools(gateway, headers) == []
    assert "the safe of" not in await chat(gateway, headers, "s_open_ada")
    assert headers["Authorization"].removeprefix("Bearer ") not in stack.received
    assert len(stack.forms) < 12
    stack.answer = None
    assert "the safe of bob" in await chat(gateway, stack.sign_in("bob"), "s_open_bob")


@pytest.mark.faults
async def test_slow_token_endpoint_delays_a_chat_by_seconds_only(gateway: Gateway, stack: ExchangeStack) -> None:
    async def stall(_form: dict[str, str]) -> Response:
        await asyncio.sleep(60)
        return Response()

    stack.answer = stall
    started_at = time.monotonic()
    assert "the safe of" not in await chat(gateway, stack.sign_in("ada"), "s_open_ada")
    assert time.monotonic() - started_at < 20


@pytest.mark.parametrize("is_named", [False, True])
async def test_token_of_another_issuer_is_only_sent_where_the_entry_names_that(
    database_url: str, simulator: Simulator, stack: ExchangeStack, tmp_path: Path, is_named: bool
) -> None:
    async with AsyncExitStack() as exits:
        other = await exits.enter_async_context(serve_exchange())
        settings: dict[str, Any] = {
            "jwt_issuer": (stack.url, other.url),
            "jwt_jwks_url": (f"{stack.url}/jwks.json", f"{other.url}/jwks.json"),
            "oauth": {"subject_issuer": other.url} if is_named else {},
        }
        gateway = await exits.enter_async_context(
            serve_exchanging_gateway(database_url, simulator, stack, tmp_path, **settings)
        )
        await list_tools(gateway, other.sign_in("ada"))
        assert len(stack.forms) == int(is_named)
        await list_tools(gateway, stack.sign_in("ada"))
        assert len(stack.forms) == 1


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_hosts_of_two_users_list_and_call_their_own_tools_at_once(
    gateway: Gateway, stack: ExchangeStack, mode: str
) -> None:
    for user in ("ada", "bob"):
        async with connect_mcp_client(gateway, stack.sign_in(user), mode) as host:
            tools = [tool.name for tool in (await host.list_tools()).tools if tool.name.startswith("s_")]
            assert tools == [f"s_open_{user}"]
            prompts = [prompt.name for prompt in (await host.list_prompts()).prompts]
            assert [name for name in prompts if "greet" in name] == [f"s_greet_{user}"]
            assert f"the safe of {user}" in str((await host.call_tool(f"s_open_{user}", {})).content)


async def start_turn_with_approval(gateway: Gateway, headers: dict[str, str]) -> tuple[str, str]:
    """Start a turn that asks for an approval; return both ids."""
    body = {"messages": [{"role": "user", "content": "call s_open_ada {}"}], "approval": "always"}
    reply = await gateway.post("/api/v1/chat", body, headers=headers)
    turn = reply.body["turn_id"]
    view = (await gateway.get(f"/api/v1/turns/{turn}", headers=headers)).body
    return turn, view["inputs"][0]["id"]


async def approve(gateway: Gateway, headers: dict[str, str], turn: str, input_id: str) -> str:
    """Approve the call; return the ended turn as text."""
    answer = {"input_id": input_id, "action": "accept"}
    assert (await gateway.post(f"/api/v1/turns/{turn}/input", answer, headers=headers)).status == 200

    async def has_ended() -> bool:
        return (await gateway.get(f"/api/v1/turns/{turn}", headers=headers)).body["status"] == "completed"

    await eventually(has_ended)
    return str((await gateway.get(f"/api/v1/turns/{turn}", headers=headers)).body)


async def test_turn_that_waited_for_an_approval_goes_on_with_the_token_of_the_answer(
    gateway: Gateway, stack: ExchangeStack
) -> None:
    turn, question = await start_turn_with_approval(gateway, stack.sign_in("ada"))
    stack.revoked = set(stack.received)
    forms = len(stack.forms)
    assert "the safe of ada" in await approve(gateway, stack.sign_in("ada", exp=time.time() + 90_000), turn, question)
    assert len(stack.forms) == forms + 1


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [0, 600])
async def test_turn_at_another_worker_uses_the_token_until_it_expires(
    database_url: str,
    simulator: Simulator,
    stack: ExchangeStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: int,
) -> None:
    """Answer some seconds later with a key.

    So the other worker sees no token.
    """
    async with serve_exchanging_gateway(database_url, simulator, stack, tmp_path) as first:
        keyring = Keyring(first)
        await keyring.create_key("ada")
        turn, question = await start_turn_with_approval(first, stack.sign_in("ada"))
    monkeypatch.setattr(stored_exchange, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    async with serve_exchanging_gateway(database_url, simulator, stack, tmp_path) as second:
        text = await approve(second, keyring.headers("ada"), turn, question)
    assert len(stack.forms) == 1
    assert ("the safe of ada" in text) == (seconds == 0)
    assert ("sign in again and repeat the request" in text) == (seconds == 600)


async def test_no_token_is_stored_or_logged(
    gateway: Gateway, stack: ExchangeStack, db: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = stack.sign_in("ada")
    with capture_logs() as entries:  # whatever other tests of this process have configured
        turn, question = await start_turn_with_approval(gateway, headers)
        assert "the safe of ada" in await approve(gateway, headers, turn, question)
    secrets = {headers["Authorization"].removeprefix("Bearer "), *stack.received, CLIENT_SECRET}
    stored = ""
    for table in await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        stored += "".join(row[0] for row in await db.fetch(f'SELECT t::text FROM "{table[0]}" t'))
    assert "s_open_ada" in stored
    printed = capsys.readouterr()
    logged = f"{entries}{printed.out}{printed.err}"
    assert "tool_called" in logged
    for secret in secrets:
        assert secret not in stored
        assert secret not in logged
