"""Denied tools, hidden characters, trusted hosts, origins, hostile bodies and placeholder secrets."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer

from gateway.api.security.middleware import get_source_address
from gateway.common.sanitize import sanitize_text
from gateway.config import ConfigError, load_settings
from gateway.ports.tools import ToolCallRequest
from gateway.simulator import Fault, Simulator
from tests.auth_helpers import Keyring
from tests.stack import Gateway, serve_asgi, serve_gateway

# --- source addresses


@pytest.mark.parametrize(
    ("client", "source"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("2001:0DB8::0:1", 1), "2001:db8::/64"),
        (("2001:db8:0:0:ffff::1", 1), "2001:db8::/64"),
        (("2001:db8:0:1::1", 1), "2001:db8:0:1::/64"),
        (("64:ff9b::198.51.100.1", 1), "198.51.100.1"),
        (("2002:c633:6401::1", 1), "198.51.100.1"),
        (("fe80::1%" + "A" * 5_000, 1), "fe80::/64"),
        (("A" * 5_000, 1), "unknown"),
        (("192.0.2.7 extra", 1), "unknown"),
        (("", 0), "unknown"),
        (None, "unknown"),
    ],
)
def test_source_address_is_normalized_or_unknown(client: Any, source: str) -> None:
    assert get_source_address({"client": client}) == source


# --- denied tools


@pytest.mark.parametrize("glob", ["add_task", "add_*", "tools/add_task"])
async def test_denied_tool_is_unavailable_despite_allow_lists(
    database_url: str, simulator: Simulator, tools_url: str, db: asyncpg.Connection, glob: str
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, tools_deny=(glob,)) as gateway:
        keyring = Keyring(gateway)
        headers = await keyring.create_key("root", role="admin", tools=("*", "add_task"))
        names = {tool["name"] for tool in (await keyring.get("root", "/api/v1/tools")).body["tools"]}
        assert "add_task" not in names
        assert "calculator" in names
        assert (await keyring.post("root", "/api/v1/tools/add_task", {"title": "x"})).status == 404
        turn = await keyring.chat("root", "Add a task to rest", tools=["add_task"])
        assert turn.status == 200
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(f"{gateway.base_url}/mcp", http_client=http)) as client,
        ):
            assert "add_task" not in {tool.name for tool in (await client.list_tools()).tools}
            with pytest.raises(MCPError, match="Unknown tool"):
                await client.call_tool("add_task", {"title": "x"})
        specs = {spec.name: spec for spec in gateway.state.toolbox._toolbox._toolbox.list_specs()}
        principal = await authenticate_headers(gateway, headers)
        result: Any = await gateway.state.toolbox.call_tool(
            ToolCallRequest(specs["add_task"], {"title": "x"}, principal)
        )
        assert result.outcome == "denied"
        assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 0


async def authenticate_headers(gateway: Gateway, headers: dict[str, str]) -> Any:
    from starlette.datastructures import Headers

    return await gateway.state.auth.authenticate_request(Headers(headers), "test")


# --- hidden characters

HIDDEN_TEXT = (
    "\x1b[31mred\x1b[0m \x1b]8;;http://evil\x07link\x1b]8;;\x07 \u202etxet\u202c a\U000e0041\U000e0042b \x08\x00end"
)
VISIBLE_TEXT = "red link txet ab end"


@pytest.fixture
async def gateway_with_hidden_text(database_url: str, simulator: Simulator) -> AsyncGenerator[Gateway]:
    """A gateway with an MCP server whose results contain hidden characters."""
    server = MCPServer("hidden")

    @server.tool(structured_output=False)
    async def send_hidden_text(ctx: Context[Any, Any]) -> str:
        await ctx.report_progress(1, 2, HIDDEN_TEXT)
        return HIDDEN_TEXT

    @server.tool()
    async def get_figures() -> dict[str, Any]:
        return {"of": [HIDDEN_TEXT], HIDDEN_TEXT: 1}

    @server.resource("hidden://note")
    def read_note() -> str:
        return HIDDEN_TEXT

    async with (
        serve_asgi(server.streamable_http_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
    ):
        yield gateway


async def test_hidden_characters_are_removed_from_tool_results(
    gateway_with_hidden_text: Gateway, simulator: Simulator
) -> None:
    reply_body = (await gateway_with_hidden_text.post("/api/v1/tools/send_hidden_text", {})).body
    assert reply_body["content"] == [{"type": "text", "text": VISIBLE_TEXT}]
    assert (await gateway_with_hidden_text.post("/api/v1/tools/get_figures", {})).body["structured"] == {
        "of": [VISIBLE_TEXT],
        VISIBLE_TEXT: 1,
    }
    resource = (await gateway_with_hidden_text.get("/api/v1/mcp/resources/read?uri=hidden://note")).body
    assert resource["contents"][0]["text"] == VISIBLE_TEXT
    simulator.faults.add_faults(Fault(kind="tool_calls", calls=[{"name": "send_hidden_text", "arguments": "{}"}]))
    stream = await gateway_with_hidden_text.chat_stream("send hidden text")
    [result] = stream.get_event_data("tool.result")
    assert result["content"] == [{"type": "text", "text": VISIBLE_TEXT}]
    assert [event["message"] for event in stream.get_event_data("tool.progress")] in ([VISIBLE_TEXT], [])
    for event in stream.events:
        assert "\\u202e" not in json.dumps(event.data)
        assert "\\u001b" not in json.dumps(event.data)


@pytest.mark.parametrize(
    ("text", "visible_text"),
    [
        ("a" + "".join(chr(0xE0100 + byte) for byte in b"obey"), "a"),
        ("a\ufe00\ufe01\ufe0fb \ufe0f", "ab "),
        ("pass\u200bword\u2060 \ufeffx\u200e\u200f\u061c\u00ad\u2063", "password x"),
        ("a\u200d\u200cb\u200d", "ab"),
        ("a\u3164\uffa0\u115f\u1160\u115f\u034fb\u17b4\u17b5\U0001d173\U0001bca0\ufff0", "ab"),
        ("\U0001f642" + "\ufe0f\u2060" * 9 + "\u200d" * 9, "\U0001f642\ufe0f"),
        ("a\x1bPq#0;2;0;0;0#0~~\x1b\\b\x1b_Gi=1;AAAA\x1b\\c\x1b^x\x1b\\d\x1bXx\x1b\\e", "abcde"),
        ("a\x1b]0;title\x1b\\b\x1b]2;x\x9cc\x1bPnever ends", "abc"),
        ("a\x1b(Bb\x1bcc\x1b[?25ld\x1b[1;31", "abcd"),
        ("\x1b\u200b[31mred", "[31mred"),
    ],
    ids=["selectors", "first-selectors", "zero-width", "joiners", "fillers", "runs", "dcs", "osc", "short", "nested"],
)
def test_invisible_characters_are_removed(text: str, visible_text: str) -> None:
    assert sanitize_text(text) == visible_text


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\r\nof two lines",
        "\u2764\ufe0f \u260e\ufe0e 1\ufe0f\u20e3 \u2139\ufe0f",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308",
        "\U0001f469\U0001f3fd\u200d\U0001f4bb \u2764\ufe0f\u200d\U0001f525",
        "\u1112\u1160\u11ab \u115f\u1161\u11ab \ud55c\uae00",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937 \u0915\u094d\u200c",
        "\u65e5\u672c\u3000\u8a9e na\u00efve \u05e9\u05dc\u05d5\u05dd",
    ],
    ids=["plain", "presentation", "families", "skin-tones", "korean", "persian", "hindi", "other-scripts"],
)
def test_meaningful_joiners_and_variation_selectors_stay(text: str) -> None:
    assert sanitize_text(text) == text


# --- nesting depth


def build_nested_value(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = {"of": value}
    return value


async def test_too_deeply_nested_values_are_rejected(shared_gateway: Gateway) -> None:
    deep_reply, flat_reply = [
        (await shared_gateway.post("/api/v1/tools/calculator", {"expression": build_nested_value(n)})).body
        for n in (110, 50)
    ]
    assert (deep_reply["outcome"], "100 deep" in deep_reply["content"][0]["text"]) == ("error", True)
    assert "deep" not in flat_reply["content"][0]["text"]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": build_nested_value(110)}}}
    reply = await shared_gateway.chat("Hello", response_format=schema)
    assert (reply.status, reply.body["error"]["param"]) == (422, "response_format")


# --- trusted hosts, origins and headers


@pytest.mark.parametrize(
    ("trusted", "accepted", "rejected"),
    [
        (
            (),
            ["localhost:8000", "LOCALHOST:8001", "localhost.", "127.0.0.1", "[::1]:8000", "[0:0:0:0:0:0:0:1]"],
            [
                "evil.example",
                "127.0.0.1.evil.example",
                "localhost:80.evil.example",
                "a@localhost",
                "localhost:70000",
                "",
            ],
        ),
        (("gateway.example", "*.internal"), ["gateway.example:80", "a.internal"], ["localhost"]),
    ],
)
async def test_only_trusted_host_names_are_accepted(
    database_url: str,
    simulator: Simulator,
    tools_url: str,
    trusted: tuple[str, ...],
    accepted: list[str],
    rejected: list[str],
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, trusted_hosts=trusted) as gateway:
        for host in [*accepted, *rejected]:
            reply = await gateway.get("/api/v1/models", headers={"Host": host})
            assert reply.status == (200 if host in accepted else 421), host
            if host in rejected:
                assert reply.body["error"]["code"] == "wrong_host"
            async with gateway.session.post(f"{gateway.base_url}/mcp", json={}, headers={"Host": host}) as response:
                assert (response.status == 421) is (host in rejected), host
            assert (await gateway.get("/health", headers={"Host": host})).status == 200


async def test_cross_origin_writes_are_rejected_without_authentication(gateway: Gateway) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}]}
    for origin, status in (("https://evil.example", 403), ("null", 403), (gateway.base_url, 200)):
        assert (await gateway.post("/api/v1/chat", body, headers={"Origin": origin})).status == status
    assert (await gateway.get("/api/v1/models", headers={"Origin": "https://evil.example"})).status == 200
    keyring = Keyring(gateway)
    headers = await keyring.create_key("ada")
    authenticated = await gateway.post("/api/v1/chat", body, headers=headers | {"Origin": "https://app.example"})
    assert authenticated.status == 200


@pytest.mark.parametrize("path", ["/api/v1/models", "/health", "/no/such/route", "/docs"])
async def test_all_responses_have_security_headers(shared_gateway: Gateway, path: str) -> None:
    async with shared_gateway.session.get(f"{shared_gateway.base_url}{path}") as response:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["X-Frame-Options"] == "DENY"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert ("default-src 'none'" in response.headers.get("Content-Security-Policy", "")) is (path != "/docs")


# --- hostile bodies


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"messages":' * 50_000,
        b'{"messages": ' + b"9" * 10_000 + b"}",
        b'{"temperature": 1e999999, "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": -1}',
        b"\xff\xfe\x00",
    ],
    ids=["depth", "unclosed", "digits", "infinity", "nan", "surrogate", "not utf-8"],
)
@pytest.mark.parametrize("path", ["/api/v1/chat", "/v1/chat/completions", "/v1/responses", "/api/v1/tools/calculator"])
async def test_hostile_body_is_rejected_as_a_client_error(shared_gateway: Gateway, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with shared_gateway.session.post(f"{shared_gateway.base_url}{path}", data=body, headers=headers) as response:
        reply_body = await response.json()
        assert response.status in (400, 422) or (path.endswith("calculator") and reply_body["outcome"] == "error"), (
            reply_body
        )


# --- secrets


SECRET_SETTINGS = ["api_key", "tools_server_secret", "groq_api_key", "openai_api_key"]


@pytest.mark.parametrize(
    "secret",
    [
        "changeme",
        "change-me-please",
        "<your key>",
        "your_api_key_here",
        "xxxxxxxx",
        "...",
        "PASSWORD",
        "gsk_...",
        "sk-proj-xxxx",
        "your-api-key",
    ],
)
@pytest.mark.parametrize("setting", SECRET_SETTINGS)
def test_placeholder_is_rejected_as_a_secret(setting: str, secret: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting.upper()}: is a placeholder") as error_info:
        load_settings(_env_file=None, **{setting: secret})
    assert secret not in str(error_info.value)


@pytest.mark.parametrize("setting", SECRET_SETTINGS)
def test_placeholder_that_is_a_word_of_the_message_is_rejected(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting.upper()}: is a placeholder"):
        load_settings(_env_file=None, **{setting: "secret"})


def test_placeholder_is_rejected_as_an_encryption_key() -> None:
    with pytest.raises(ConfigError, match="GATEWAY_ENCRYPTION_KEY: is a placeholder"):
        load_settings(_env_file=None, gateway_encryption_key="please-change-me-now")


@pytest.mark.parametrize("secret", ["a-key-of-the-tests", "gsk_a1b2c3d4e5f6a7b8", "correct horse battery staple"])
def test_real_secret_is_accepted(secret: str) -> None:
    settings = load_settings(_env_file=None, api_key=secret)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == secret


@pytest.mark.parametrize("secret", ["a", "test", "fifteen-letters"])
def test_short_static_api_key_is_rejected(secret: str) -> None:
    with pytest.raises(ConfigError, match="API_KEY: must have at least 16 characters"):
        load_settings(_env_file=None, api_key=secret)


def test_self_hosted_model_server_accepts_any_openai_key() -> None:
    assert (
        load_settings(_env_file=None, openai_api_key="none", openai_base_url="http://127.0.0.1:11434/v1").provider
        == "openai"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"postgres_host": "db", "postgres_password": "changeme"}, "POSTGRES_PASSWORD: is a placeholder"),
        ({"database_url": "postgresql://me:%3Cpassword%3E@db/d"}, "DATABASE_URL: its password is a placeholder"),
    ],
)
def test_remote_database_rejects_a_placeholder_password(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(_env_file=None, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"postgres_password": "changeme"},
        {"postgres_host": "localhost", "postgres_password": "changeme"},
        {
            "database_url": "postgresql://me:changeme@127.0.0.1/d",
            "postgres_host": "db",
            "postgres_password": "changeme",
        },
        {"database_url": "postgresql://me:changeme@/d?host=/run/postgresql"},
        {"database_url": "postgresql://me@db/d"},
        {"postgres_host": "db", "postgres_password": "p@ss/word"},
    ],
)
def test_local_database_accepts_any_password(settings: dict[str, str]) -> None:
    load_settings(_env_file=None, **settings)
