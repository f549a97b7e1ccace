"""Microsoft's Agent Framework as a host: `python use_agent_framework.py URL KEY`."""

import asyncio
import sys

from agent_framework import MCPStreamableHTTPTool


async def main(url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    async with MCPStreamableHTTPTool(name="gateway", url=url, static_headers=headers) as tool:
        print([function.name for function in tool.functions])
        print([content.text for content in await tool.call_tool("calculator", expression="6*7")])


asyncio.run(main(*sys.argv[1:]))
