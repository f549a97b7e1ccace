"""Traces of turns, read back by a receiver of OTLP."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from gateway.simulator import Fault, Simulator
from tests.eventually import eventually
from tests.otlp_receiver import OtlpReceiver
from tests.stack import Gateway, serve_gateway

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "tracestate": "vendor=1"}
SECRET_TEXT = "the zebra is called Zanzibar"


@pytest.fixture
async def traced(
    receiver: OtlpReceiver, database_url: str, simulator: Simulator, tools_url: str
) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, model_fallbacks=("openai/gpt-oss-20b",)) as gateway:
        yield gateway


def chat_body(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def wait_for(receiver: OtlpReceiver, name: str, count: int = 1) -> None:
    await eventually(lambda: len(receiver.find(name)) >= count)


async def test_turn_is_one_trace_of_its_caller_by_the_conventions(traced: Gateway, receiver: OtlpReceiver) -> None:
    receiver.trace_id = TRACE
    reply = await traced.post("/api/v1/chat", chat_body("What is 17 * 23?", conversation_id="new"), headers=CALLER)
    assert reply.status == 200
    await wait_for(receiver, "POST /api/v1/chat")
    await wait_for(receiver, "invoke_agent")
    await wait_for(receiver, "tools/call calculator", 2)  # a server ends its own after it has answered
    await wait_for(receiver, "commit", 2)
    (request,) = receiver.find("POST /api/v1/chat")
    assert (request.trace_id, request.parent_id, request.kind) == (TRACE, "b7ad6b7169203331", 2)
    assert request.attributes["http.response.status_code"] == 200
    (agent,) = receiver.find("invoke_agent agent-gateway")
    assert agent.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert agent.attributes["gen_ai.provider.name"] == "groq"
    assert agent.attributes["gen_ai.conversation.id"] == reply.body["conversation_id"]
    assert agent.attributes["gateway.turn.id"] == reply.body["turn_id"]
    assert agent.attributes["gen_ai.usage.input_tokens"] == reply.body["usage"]["prompt_tokens"]
    chats = receiver.find(f"chat {reply.body['model']}")
    assert [chat.attributes["gen_ai.operation.name"] for chat in chats] == ["chat", "chat"]
    assert all(receiver.list_ancestors(chat)[:2] == [agent.name, request.name] for chat in chats)
    (tool,) = receiver.find("execute_tool", gen_ai__operation__name="execute_tool", gateway__mcp__server="tools")
    (client,) = [span for span in receiver.find("tools/call calculator") if span.kind == 3]
    assert client.attributes["mcp.method.name"] == "tools/call"
    assert receiver.list_ancestors(client)[0] == tool.name
    servers = [span for span in receiver.find("tools/call calculator") if span.kind == 2]
    assert [receiver.list_ancestors(span)[0] for span in servers] == [client.name]
    assert {span.attributes["gateway.commit.kind"] for span in receiver.find("commit")} >= {"begin", "finish"}
    assert {span.trace_id for span in receiver.find("commit") + chats + [tool, client, *servers]} == {TRACE}


async def test_tries_and_fallbacks_are_events_of_the_call(traced: Gateway, receiver: OtlpReceiver) -> None:
    traced.simulator.faults.add_faults(Fault(kind="status", status=503, times=3, match="gpt-oss-120b"))
    reply = await traced.post("/api/v1/chat", chat_body("Say hello."))
    assert reply.status == 200
    await wait_for(receiver, "POST /api/v1/chat")
    (chat,) = receiver.find("chat openai/gpt-oss-120b")
    assert [name for name, _ in chat.events] == ["gateway.retry", "gateway.retry", "gateway.fallback"]
    assert chat.events[-1][1]["gen_ai.request.model"] == "openai/gpt-oss-20b"
    assert chat.attributes["gen_ai.response.model"] == "openai/gpt-oss-20b"


async def test_failed_call_has_a_code_and_no_message(traced: Gateway, receiver: OtlpReceiver) -> None:
    body = {"error": {"message": SECRET_TEXT, "type": "invalid_request_error"}}
    traced.simulator.faults.add_faults(Fault(kind="status", status=400, body=body))
    assert (await traced.post("/api/v1/chat", chat_body(SECRET_TEXT))).status >= 400
    await wait_for(receiver, "POST /api/v1/chat")
    (chat,) = receiver.find("chat ")
    assert chat.failed
    assert chat.attributes["error.type"]
    assert "Zanzibar" not in receiver.read_texts()


def without_host(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}


async def test_model_server_gets_the_trace(
    receiver: OtlpReceiver, database_url: str, simulator: Simulator, tools_url: str
) -> None:
    seen: list[str] = []

    async def forward(request: web.Request) -> web.Response:
        seen.append(request.headers.get("traceparent", ""))
        async with aiohttp.ClientSession() as session:
            url = f"{simulator.base_url}{request.path}"
            async with session.request(
                request.method, url, data=await request.read(), headers=without_host(request)
            ) as response:
                return web.Response(body=await response.read(), content_type=response.content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with serve_gateway(
            database_url, simulator, tools_url, groq_base_url=f"http://127.0.0.1:{port}"
        ) as gateway:
            assert (await gateway.post("/api/v1/chat", chat_body("Say hello."), headers=CALLER)).status == 200
    finally:
        await runner.cleanup()
    await wait_for(receiver, "chat ")
    (chat,) = receiver.find("chat ")
    assert f"00-{TRACE}-{chat.span_id}-01" in seen


async def test_suspended_turn_goes_on_in_its_trace_with_a_link(
    traced: Gateway, receiver: OtlpReceiver, db: asyncpg.Connection
) -> None:
    reply = await traced.post("/api/v1/chat", chat_body("Add a task to buy milk", approval="always"), headers=CALLER)
    (question,) = reply.body["inputs"]
    stored = await db.fetchval("SELECT trace_context::text FROM turns")
    assert TRACE in stored
    assert '"format": "native"' in stored
    answer = {"input_id": question["input_id"], "action": "accept"}
    assert (await traced.post(f"/api/v1/turns/{reply.body['turn_id']}/input", answer)).status == 200
    await wait_for(receiver, "invoke_agent", 2)
    await wait_for(receiver, "POST /api/v1/chat")
    first, second = sorted(receiver.find("invoke_agent"), key=lambda span: span.start)
    (request,) = receiver.find("POST /api/v1/chat")
    assert (first.trace_id, second.trace_id) == (TRACE, TRACE)
    assert first.attributes["gateway.outcome"] == "waiting"
    assert second.links == [(TRACE, request.span_id)]
    (wait,) = receiver.find("wait approval")
    assert wait.trace_id == TRACE
    assert first.start <= wait.start <= wait.end <= second.end


@pytest.mark.parametrize("header", ["", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "00-" + "x" * 9000])
async def test_hostile_trace_headers_start_a_trace_of_their_own(
    traced: Gateway, receiver: OtlpReceiver, header: str
) -> None:
    assert (await traced.post("/api/v1/chat", chat_body("Say hello."), headers={"traceparent": header})).status == 200
    await wait_for(receiver, "POST /api/v1/chat")
    (request,) = receiver.find("POST /api/v1/chat")
    assert request.parent_id == ""


async def test_texts_are_not_in_traces(traced: Gateway, receiver: OtlpReceiver) -> None:
    assert (await traced.post("/api/v1/chat", chat_body(f"{SECRET_TEXT}. What is 17 * 23?"))).status == 200
    await traced.post("/api/v1/tools/calculator", {"expression": SECRET_TEXT})
    await traced.get("/api/v1/history?q=Zanzibar")
    await wait_for(receiver, "POST /api/v1/tools/{name}")
    assert "Zanzibar" not in receiver.read_texts()
    assert "17 * 23" not in receiver.read_texts()
    addressed = [span for span in receiver.spans if "127.0.0.1" in repr(span)]
    assert addressed == []


async def test_calls_of_a_program_are_below_it(traced: Gateway, receiver: OtlpReceiver) -> None:
    code = 'r = await calculator(expression="17 * 23")\nr["result"]'
    calls = [{"name": "run_python", "arguments": json.dumps({"code": code})}]
    traced.simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls, match="Run it"))
    reply = await traced.post("/api/v1/chat", chat_body("Run it", code="only"), headers=CALLER)
    assert reply.status == 200
    await wait_for(receiver, "POST /api/v1/chat")
    (program,) = receiver.find("execute_tool run_python")
    (call,) = receiver.find("execute_tool calculator")
    assert program.attributes["gateway.outcome"] == "ok"
    assert receiver.list_ancestors(call)[0] == program.name
    assert {program.trace_id, call.trace_id} == {TRACE}
    assert "17 * 23" not in receiver.read_texts()
