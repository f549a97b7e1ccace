"""Schemathesis over the OpenAPI document: no server error and no undeclared response.

Two checks are excluded: `negative_data_rejection`, as numbers in text form are accepted, and
`positive_data_acceptance`, as a schema cannot express some rules (a date in the past is rejected).
"""

from pathlib import Path

import pytest

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.fuzz.schema_requests import run_schemathesis
from tests.stack import Gateway, serve_gateway


@pytest.mark.parametrize(("caller", "examples"), [("admin", 2), ("anonymous", 1)])
async def test_generated_requests_cause_no_server_error_or_undeclared_response(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path, caller: str, examples: int
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_enabled=False) as gateway:
        keyring = Keyring(gateway)
        await keyring.create_key("ada", role="admin")
        options = [] if caller == "anonymous" else ["--header", f"X-API-Key: {keyring.secrets['ada']}"]
        code, output = await run_schemathesis(gateway.base_url, tmp_path, *options, "--max-examples", str(examples))
        assert code == 0, output


SURROGATE = r"\ud800"
CHAT_TEMPLATE = r'{"messages": [{"role": "user", "content": %s}]}'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/chat", CHAT_TEMPLATE % f'"{SURROGATE}"'),
        ("/v1/chat/completions", CHAT_TEMPLATE % f'[{{"type": "text", "text": "{SURROGATE}"}}]'),
        ("/v1/responses", f'{{"input": "x", "metadata": {{"{SURROGATE}": "x"}}}}'),
        ("/stream", f'{{"prompt": "x{SURROGATE}"}}'),
        ("/api/v1/tools/calculator", f'{{"expression": "{SURROGATE}"}}'),
        ("/api/v1/mcp/prompts/plan_day", f'{{"{SURROGATE}": "x"}}'),
        ("/api/v1/mcp/servers", f'{{"name": "a", "url": "http://127.0.0.1:9/mcp", "deny": ["{SURROGATE}"]}}'),
        ("/mcp", f'{{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {{"a": "{SURROGATE}"}}}}'),
    ],
)
async def test_lone_surrogate_is_rejected_as_a_client_error(shared_gateway: Gateway, path: str, body: str) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    url = f"{shared_gateway.base_url}{path}"
    raw = body.replace(SURROGATE, "\ud800")
    encoded_bodies = [
        body.encode(),
        body.encode("utf-16"),
        *(raw.encode(c, "surrogatepass") for c in ("utf-8", "utf-16")),
    ]
    for encoded in encoded_bodies:
        async with shared_gateway.session.post(url, data=encoded, headers=headers) as response:
            assert response.status in (400, 422), encoded
    valid_body = body.replace(SURROGATE, r"\ud83d\ude00")
    async with shared_gateway.session.post(url, data=valid_body, headers=headers) as response:
        assert response.status < 500
        assert "not valid JSON" not in await response.text()
    assert {
        server.state for server in shared_gateway.state.toolbox.list_server_statuses() if server.name == "tools"
    } == {"up"}


async def test_nul_character_is_replaced(gateway: Gateway) -> None:
    metadata = {"nul": "a\x00b", "text": "c\\u0000d"}
    response = (await gateway.post("/v1/responses", {"input": "Hello", "metadata": metadata})).body
    stored = (await gateway.get(f"/v1/responses/{response['id']}")).body
    assert stored["metadata"] == {"nul": "a\ufffdb", "text": "c\\u0000d"}
    assert (await gateway.get("/api/v1/usage?user=%00")).status == 422
