"""mcp-use as a host: `python use_mcp_use.py URL KEY`."""

import asyncio
import sys

from mcp_use import MCPClient


async def main(url: str, key: str) -> None:
    entry = {"url": url, "headers": {"Authorization": f"Bearer {key}"}}
    client = MCPClient.from_dict({"mcpServers": {"gateway": entry}})
    session = await client.create_session("gateway")
    try:
        print([tool.name for tool in await session.list_tools()])
        print((await session.call_tool("calculator", {"expression": "6*7"})).content)
    finally:
        await client.close_all_sessions()


asyncio.run(main(*sys.argv[1:]))
