"""Messages that are not quite JSON-RPC, over stdio and HTTP."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from gateway.domain.messages import Principal, ToolResult
from gateway.mcp_client.messages.lenient import parse_messages
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import ToolCallRequest
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool
from tests.gateway.mcp_client.test_toolbox import connect_toolbox
from tests.stack import serve_asgi

TEXT = '{"content":[{"type":"text","text":"yes"}]}'
ANSWER = f'{{"jsonrpc":"2.0","id":ID,"result":{TEXT}}}'
MESSAGES: dict[str, tuple[str, str, str]] = {
    "plain": (ANSWER, "ok", "yes"),
    "mark": (f"\ufeff{ANSWER}", "ok", "yes"),
    "batch": (f'[{{"jsonrpc":"2.0","method":"notifications/x"}},{ANSWER}]', "ok", "yes"),
    "no_version": (f'{{"id":ID,"result":{TEXT}}}', "ok", "yes"),
    "version_1": (f'{{"jsonrpc":"1.0","id":ID,"result":{TEXT},"error":null}}', "ok", "yes"),
    "two": (f'{{"jsonrpc":"2.0","method":"notifications/x"}} {ANSWER}', "ok", "yes"),
    "float_id": (f'{{"jsonrpc":"2.0","id":ID.0,"result":{TEXT}}}', "ok", "yes"),
    "half_pair": (
        '{"jsonrpc":"2.0","id":ID,"result":{"content":[{"type":"text","text":"a\\ud800b"}]}}',
        "ok",
        "a\ufffdb",
    ),
    "text_result": ('{"jsonrpc":"2.0","id":ID,"result":"yes"}', "ok", "yes"),
    "list_result": ('{"jsonrpc":"2.0","id":ID,"result":["yes"]}', "ok", "yes"),
    "null_result": ('{"jsonrpc":"2.0","id":ID,"result":null}', "ok", ""),
    "text_error": ('{"jsonrpc":"2.0","id":ID,"error":"boom"}', "error", "refused the call: boom"),
    "no_code": ('{"jsonrpc":"2.0","id":ID,"error":{"message":"boom"}}', "error", "refused the call: boom"),
    "text_code": (
        '{"jsonrpc":"2.0","id":ID,"error":{"code":"E1","message":"boom"}}',
        "error",
        "refused the call: boom",
    ),
    "no_message": ('{"jsonrpc":"2.0","id":ID,"error":{"code":7,"reason":"boom"}}', "error", "boom"),
    "nothing": ('{"jsonrpc":"2.0","id":ID}', "unknown", "cannot be read"),
}


class MessageServer(RawServer):
    """Answers calls with the texts above."""

    def __init__(self) -> None:
        super().__init__(*map(make_raw_tool, MESSAGES), modern=False)

    async def _respond(self, request: Request) -> Response:
        message = await request.json() if request.method == "POST" else {}
        if message.get("method") != "tools/call":
            return await super()._respond(request)
        text = MESSAGES[message["params"]["name"]][0].replace("ID", str(message["id"]))
        return Response(text.encode(), media_type="application/json")


async def check_all(toolbox: McpToolbox) -> None:
    async def call(tool: str) -> tuple[str, str]:
        spec = toolbox.find_tool(tool)
        assert spec is not None
        result = await toolbox.call_tool(ToolCallRequest(spec, {}, Principal("ada")))
        assert isinstance(result, ToolResult)
        return result.outcome, "".join(block["text"] for block in result.content)

    results = dict(zip(MESSAGES, await asyncio.gather(*map(call, MESSAGES)), strict=True))
    wrong = {
        tool: results[tool]
        for tool, (_, outcome, text) in MESSAGES.items()
        if results[tool][0] != outcome or text not in results[tool][1]
    }
    assert wrong == {}


async def test_odd_messages_over_http_are_read() -> None:
    async with (
        serve_asgi(MessageServer()) as url,
        connect_toolbox(ServerConfig(name="s", prefix="", url=f"{url}/mcp", timeout=20)) as toolbox,
    ):
        await check_all(toolbox)


@pytest.mark.faults
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "mark"])
async def test_odd_messages_over_stdio_are_read(start: str) -> None:
    texts = {tool: text for tool, (text, *_) in MESSAGES.items()}
    command = str(Path(__file__).with_name("odd_messages_command.py"))
    env = {"ODD_MESSAGES": json.dumps(texts), "ODD_START": start, "PYTHONUTF8": "1"}
    config = ServerConfig(name="s", prefix="", command=sys.executable, args=(command,), env=env, timeout=20)
    async with connect_toolbox(config) as toolbox:
        await check_all(toolbox)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[]", "[1]", "print", '{"id":null}', "[" * 5_000, '{"a":"\\ud800"}', '{"id":true,"result":{}}'],
)
def test_what_is_no_message_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_messages(text)
