"""Agno as a host: `python use_agno.py URL KEY`."""

import asyncio
import sys

from agno.tools.mcp import MCPTools, StreamableHTTPClientParams


async def main(url: str, key: str) -> None:
    params = StreamableHTTPClientParams(url=url, headers={"Authorization": f"Bearer {key}"})
    async with MCPTools(transport="streamable-http", server_params=params, timeout_seconds=60) as tools:
        print(list(tools.functions))
        print((await tools.session.call_tool("calculator", {"expression": "6*7"})).content)


asyncio.run(main(*sys.argv[1:]))
