"""Pydantic AI as a host: `python use_pydantic_ai.py URL KEY`."""

import asyncio
import sys

from pydantic_ai.mcp import MCPToolset


async def main(url: str, key: str) -> None:
    async with MCPToolset(url, headers={"Authorization": f"Bearer {key}"}) as server:
        print([tool.name for tool in await server.list_tools()])
        print(await server.direct_call_tool("calculator", {"expression": "6*7"}))


asyncio.run(main(*sys.argv[1:]))
