"""LlamaIndex's MCP tools as a host: `python use_llama_index.py URL KEY`."""

import asyncio
import sys

from llama_index.tools.mcp import BasicMCPClient, McpToolSpec


async def main(url: str, key: str) -> None:
    client = BasicMCPClient(url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    tools = {tool.metadata.name: tool for tool in await McpToolSpec(client=client).to_tool_list_async()}
    print(list(tools))
    print(await tools["calculator"].acall(expression="6*7"))


asyncio.run(main(*sys.argv[1:]))
