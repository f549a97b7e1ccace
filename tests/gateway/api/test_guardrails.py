"""Denied tools, hidden characters, redaction, trusted hosts, origins, hostile bodies and placeholders."""

import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
import regex
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer

from gateway.api.security.middleware import get_source_address
from gateway.common.redaction import Redactor, Rule, load_rules
from gateway.config import ConfigError, load_settings
from gateway.domain.messages import Message, ToolCall, TurnOutcome, Usage
from gateway.mcp_client.sanitize import sanitize_text
from gateway.simulator import Fault, Simulator
from gateway.store import redaction
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Gateway, serve_asgi, serve_gateway

RULES = Path(__file__).parent.parent.parent.parent / "docs" / "redaction.toml"


# --- source addresses


@pytest.mark.parametrize(
    ("client", "source"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("2001:0DB8::0:1", 1), "2001:db8::1"),
        (("fe80::1%" + "A" * 5_000, 1), "fe80::1"),
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
        headers = await keyring.make("root", role="admin", tools=("*", "add_task"))
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
        specs = {spec.name: spec for spec in gateway.state.toolbox._toolbox.specs()}
        principal = await authenticate_headers(gateway, headers)
        result: Any = await gateway.state.toolbox.call(specs["add_task"], {"title": "x"}, principal=principal)
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
    def note() -> str:
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
    [result] = stream.of("tool.result")
    assert result["content"] == [{"type": "text", "text": VISIBLE_TEXT}]
    assert [event["message"] for event in stream.of("tool.progress")] in ([VISIBLE_TEXT], [])
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
        ("\U0001f642" + "\ufe0f\u2060" * 9 + "\u200d" * 9, "\U0001f642\ufe0f"),
        ("a\x1bPq#0;2;0;0;0#0~~\x1b\\b\x1b_Gi=1;AAAA\x1b\\c\x1b^x\x1b\\d\x1bXx\x1b\\e", "abcde"),
        ("a\x1b]0;title\x1b\\b\x1b]2;x\x9cc\x1bPnever ends", "abc"),
        ("a\x1b(Bb\x1bcc\x1b[?25ld\x1b[1;31", "abcd"),
        ("\x1b\u200b[31mred", "[31mred"),
    ],
    ids=["selectors", "first-selectors", "zero-width", "joiners", "runs", "dcs", "osc", "short", "nested"],
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
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937 \u0915\u094d\u200c",
        "\u65e5\u672c\u3000\u8a9e na\u00efve \u05e9\u05dc\u05d5\u05dd",
    ],
    ids=["plain", "presentation", "families", "skin-tones", "persian", "hindi", "other-scripts"],
)
def test_meaningful_joiners_and_variation_selectors_stay(text: str) -> None:
    assert sanitize_text(text) == text


# --- redaction

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
    assert stream.of("turn.completed")
    assert stream.of("tool.call")
    dump = await dump_database(db)
    assert "[email]" in dump
    assert EMAIL not in dump
    assert CARD not in dump
    titles = [row["title"] for row in await db.fetch("SELECT title FROM tools.tasks")]
    assert len(titles) == 1
    assert "[email]" in titles[0]
    direct = await redacting_gateway.post("/api/v1/tools/add_task", {"title": f"ring {EMAIL}"})
    assert "[email]" in direct.body["content"][0]["text"]
    turn = stream.of("turn.started")[0]["turn_id"]
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
    turn = stream.of("turn.started")[0]["turn_id"]
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
    others = [0, 7, True, None, 52.520008123456789, float("inf"), 1234567890123]
    assert rules.redact_value(others) == others


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
        ("", "holds no"),
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


# --- nesting depth


def build_nested_value(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = {"of": value}
    return value


async def test_too_deeply_nested_values_are_rejected(standing: Gateway) -> None:
    deep_reply, flat_reply = [
        (await standing.post("/api/v1/tools/calculator", {"expression": build_nested_value(n)})).body for n in (300, 50)
    ]
    assert (deep_reply["outcome"], "100 deep" in deep_reply["content"][0]["text"]) == ("error", True)
    assert "deep" not in flat_reply["content"][0]["text"]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": build_nested_value(300)}}}
    reply = await standing.chat("Hello", response_format=schema)
    assert (reply.status, reply.body["error"]["param"]) == (422, "response_format")


# --- trusted hosts, origins and headers


@pytest.mark.parametrize(
    ("trusted", "accepted", "rejected"),
    [
        ((), ["localhost:8000", "127.0.0.1", "[::1]:8000"], ["evil.example", "127.0.0.1.evil.example", ""]),
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
    headers = await keyring.make("ada")
    authenticated = await gateway.post("/api/v1/chat", body, headers=headers | {"Origin": "https://app.example"})
    assert authenticated.status == 200


@pytest.mark.parametrize("path", ["/api/v1/models", "/health", "/no/such/route", "/docs"])
async def test_all_responses_have_security_headers(standing: Gateway, path: str) -> None:
    async with standing.session.get(f"{standing.base_url}{path}") as response:
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
async def test_hostile_body_is_rejected_as_a_client_error(standing: Gateway, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with standing.session.post(f"{standing.base_url}{path}", data=body, headers=headers) as response:
        reply_body = await response.json()
        assert response.status in (400, 422) or (path.endswith("calculator") and reply_body["outcome"] == "error"), (
            reply_body
        )


# --- secrets


@pytest.mark.parametrize(
    "secret",
    [
        "changeme",
        "change-me-please",
        "<your key>",
        "your_api_key_here",
        "xxxxxxxx",
        "...",
        "secret",
        "PASSWORD",
        "gsk_...",
        "sk-proj-xxxx",
        "your-api-key",
    ],
)
@pytest.mark.parametrize("setting", ["api_key", "tools_server_secret", "groq_api_key", "openai_api_key"])
def test_placeholder_is_rejected_as_a_secret(setting: str, secret: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting.upper()}: is a placeholder") as caught:
        load_settings(_env_file=None, **{setting: secret})
    assert secret == "secret" or secret not in str(caught.value)


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
