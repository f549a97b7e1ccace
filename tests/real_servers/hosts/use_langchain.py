"""LangChain's MCP adapters as a host: `python use_langchain.py URL KEY`."""

import asyncio
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient


async def main(url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    client = MultiServerMCPClient({"gateway": {"transport": "streamable_http", "url": url, "headers": headers}})
    tools = {tool.name: tool for tool in await client.get_tools()}
    print(list(tools))
    print(await tools["calculator"].ainvoke({"expression": "6*7"}))


asyncio.run(main(*sys.argv[1:]))
