"""Attach an MCP client to the gateway.

It is one endpoint for the tools of every connected MCP server.

python examples/mcp_client.py
"""

import asyncio
import os

from mcp import Client
from mcp.types import TextContent

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")


async def main() -> None:
    async with Client(f"{URL}/mcp") as client:
        tools = (await client.list_tools()).tools
        print("tools:", ", ".join(sorted(tool.name for tool in tools)))

        result = await client.call_tool("calculator", {"expression": "23*19"})
        print("calculator:", result.structured_content)

        # The gateway's own agent: a model that works with all of these tools.
        result = await client.call_tool("ask_agent", {"prompt": "What is 6*7?"})
        for block in result.content:
            if isinstance(block, TextContent):
                print("ask_agent:", block.text)


if __name__ == "__main__":
    asyncio.run(main())
