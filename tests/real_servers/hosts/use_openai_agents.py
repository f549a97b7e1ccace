"""OpenAI's Agents SDK as a host: `python use_openai_agents.py URL KEY`."""

import asyncio
import sys

from agents.mcp import MCPServerStreamableHttp


async def main(url: str, key: str) -> None:
    params = {"url": url, "headers": {"Authorization": f"Bearer {key}"}, "timeout": 60}
    async with MCPServerStreamableHttp(params=params, client_session_timeout_seconds=60) as server:
        print([tool.name for tool in await server.list_tools()])
        print((await server.call_tool("calculator", {"expression": "6*7"})).content)


asyncio.run(main(*sys.argv[1:]))
