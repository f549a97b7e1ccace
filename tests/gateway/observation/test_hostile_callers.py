"""Callers who choose labels, names of spans, and trace headers."""

from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.simulator import Simulator
from tests.eventually import eventually
from tests.otlp_receiver import OtlpReceiver
from tests.stack import Gateway, serve_gateway

MAX_LABEL_VALUES, CALLS = 20, 30
"""Fewer values than a label may have otherwise, because each takes requests."""
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
META = "io.modelcontextprotocol/"


@pytest.fixture
async def watched(
    receiver: OtlpReceiver,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    simulator: Simulator,
    tools_url: str,
) -> AsyncGenerator[Gateway]:
    monkeypatch.setattr("gateway_runtime.telemetry.metrics._MAX_LABEL_VALUES", MAX_LABEL_VALUES)
    async with serve_gateway(database_url, simulator, tools_url, metrics=True) as gateway:
        yield gateway


async def call_tool(gateway: Gateway, name: str, meta: dict[str, Any] | None = None) -> int:
    """Call a tool as a host, with raw JSON; return the status."""
    version = "2026-07-28"
    client = {f"{META}protocolVersion": version, f"{META}clientCapabilities": {}}
    client[f"{META}clientInfo"] = {"name": "host", "version": "1"}
    params = {"name": name, "arguments": {"expression": "5*9"}, "_meta": client | (meta or {})}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
        "Mcp-Method": "tools/call",
        "Mcp-Name": name,
    }
    async with gateway.session.post(f"{gateway.base_url}/mcp", json=body, headers=headers) as response:
        await response.read()
        return response.status


async def read_page(gateway: Gateway) -> str:
    async with gateway.session.get(f"{gateway.base_url}/metrics") as response:
        return await response.text()


async def test_hostile_names_take_no_label_from_others(watched: Gateway) -> None:
    for number in range(CALLS):
        name = f"hostile-{number}"
        message = {"messages": [{"role": "user", "content": "Say hello."}], "model": name}
        assert (await watched.post("/v1/chat/completions", message)).status == 404
        assert await call_tool(watched, name) < 500
        await watched.get(f"/api/v1/{name}")
        async with watched.session.request("HOSTILE", f"{watched.base_url}/api/v1/turns/{name}") as response:
            assert response.status < 500
    page = await read_page(watched)
    assert "hostile" not in page.lower()
    reply = await watched.post("/api/v1/chat", {"messages": [{"role": "user", "content": "What is 17 * 23?"}]})
    assert reply.status == 200
    assert await call_tool(watched, "calculator") == 200
    samples = [
        sample
        for family in text_string_to_metric_families(await read_page(watched))
        for sample in family.samples
        if sample.name.endswith(("_total", "_count"))
    ]
    wanted = [
        ("gateway_turns_total", {"model": reply.body["model"], "outcome": "completed"}, 1),
        ("gateway_tool_calls_total", {"tool": "calculator", "outcome": "ok"}, 2),
        ("mcp_server_operation_duration_seconds_count", {"gen_ai_tool_name": "calculator"}, 1),
        ("mcp_server_operation_duration_seconds_count", {"gen_ai_tool_name": "_OTHER"}, CALLS),
        ("http_server_request_duration_seconds_count", {"http_route": "unmatched"}, CALLS),
    ]
    for name, labels, value in wanted:
        found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
        assert sum(found) == value, (name, labels, found)


@pytest.mark.parametrize(
    "meta",
    [
        {"traceparent": 5},
        {"traceparent": {"a": 1}},
        {"traceparent": ["x", TRACEPARENT]},
        {"traceparent": "0" * 100_000},
        {"traceparent": f"{TRACEPARENT}\r\nX-Evil: 1"},
        {"traceparent": TRACEPARENT, "tracestate": "vendor=1\r\nX-Evil: 1"},
        {"traceparent": TRACEPARENT, "tracestate": {"a": 1}, "baggage": 7},
        {"traceparent": TRACEPARENT, "tracestate": ",".join(f"k{i}=v" for i in range(5_000))},
        {"traceparent": TRACEPARENT, "baggage": "user=ann\r\nX-Evil: 1"},
    ],
    ids=lambda meta: str(meta)[:60],
)
async def test_hostile_trace_of_a_host_changes_no_call(
    watched: Gateway, receiver: OtlpReceiver, meta: dict[str, Any]
) -> None:
    assert await call_tool(watched, "calculator", meta) < 500
    await eventually(lambda: receiver.find("POST /mcp"))
    texts = receiver.read_texts()
    assert "X-Evil" not in texts
    assert "0" * 1_000 not in texts


async def test_baggage_of_callers_is_neither_stored_nor_sent_on(
    watched: Gateway, receiver: OtlpReceiver, db: asyncpg.Connection
) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "password=hunter2"}
    body = {"messages": [{"role": "user", "content": "What is 17 * 23?"}]}
    assert (await watched.post("/api/v1/chat", body, headers=headers)).status == 200
    stored = await db.fetchval("SELECT trace_context::text FROM turns")
    assert "vendor=1" in stored
    assert "hunter2" not in stored
    await eventually(lambda: receiver.find("POST /api/v1/chat"))
    assert "hunter2" not in receiver.read_texts()


async def test_credentials_are_in_no_span(watched: Gateway, receiver: OtlpReceiver) -> None:
    secret = "sk-hunter2hunter2hunter2"
    headers = {"Authorization": f"Bearer {secret}", "X-Api-Key": secret, "Cookie": f"session={secret}"}
    body = {"messages": [{"role": "user", "content": f"My key is {secret}. What is 17 * 23?"}]}
    await watched.post(f"/api/v1/chat?api_key={secret}", body, headers=headers)
    await watched.get(f"/{secret}", headers=headers)
    server = {"name": "leaky", "url": f"http://user:{secret}@127.0.0.1:9/mcp?token={secret}"}
    await watched.post("/api/v1/mcp/servers", server)
    await eventually(lambda: receiver.find("POST /api/v1/mcp/servers"))
    assert "hunter2" not in receiver.read_texts()
    assert "hunter2" not in await read_page(watched)
