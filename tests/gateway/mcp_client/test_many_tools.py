"""A gateway with 5,000 tools of 50 servers."""

import json
from pathlib import Path

import pytest
from mcp import Client

from benchmarks.tool_servers import create_app
from tests.conftest import ServeSharedGateway
from tests.eventually import eventually
from tests.stack import serve_asgi

SERVERS, TOOLS = 50, 100
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def test_thousands_of_tools_are_listed_found_and_called(
    serve_shared_gateway: ServeSharedGateway, tmp_path: Path
) -> None:
    async with serve_asgi(create_app(SERVERS, TOOLS)) as url:
        entries = {f"s{number}": {"url": f"{url}/{number}/mcp"} for number in range(SERVERS)}
        file = tmp_path / "mcp.json"
        file.write_text(json.dumps({"mcpServers": entries}))
        gateway = await serve_shared_gateway(mcp_config=file, gateway_data_dir=tmp_path)

        async def are_up() -> bool:
            servers = (await gateway.get("/api/v1/mcp/servers")).body["servers"]
            return sum(server["tools"] for server in servers if server["name"] in entries) == SERVERS * TOOLS

        await eventually(are_up, timeout_seconds=120)
        listed = {tool["name"] for tool in (await gateway.get("/api/v1/tools")).body["tools"]}
        async with Client(f"{gateway.base_url}/mcp") as client:
            names, cursor = set[str](), None
            while True:
                page = await client.list_tools(cursor=cursor)
                names |= {tool.name for tool in page.tools}
                if (cursor := page.next_cursor) is None:
                    break
            assert names - {"ask_agent"} == listed
            name = "s49_look_up_topic_49_99"
            result = await client.call_tool(name, {"customer": "Ada"})
        assert "Ada: 20 open records" in str(result.content)
        reply = await gateway.post(f"/api/v1/tools/{name}", {"customer": "Bob"})
        assert "Bob: 20 open records" in str(reply.body)
        answer = await gateway.post("/api/v1/chat", {"messages": [{"role": "user", "content": "Hello"}]})
        assert answer.status == 200
    offered = gateway.simulator.requests[-1]["tools"]
    assert "find_tools" in {tool["function"]["name"] for tool in offered}
    assert len(offered) <= 128
