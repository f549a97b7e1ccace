"""Google's Agent Development Kit as a host: `python use_google_adk.py URL KEY`."""

import asyncio
import sys

from google.adk.tools.mcp_tool import MCPToolset, StreamableHTTPConnectionParams


async def main(url: str, key: str) -> None:
    params = StreamableHTTPConnectionParams(url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    toolset = MCPToolset(connection_params=params)
    try:
        tools = {tool.name: tool for tool in await toolset.get_tools()}
        print(list(tools))
        print(await tools["calculator"].run_async(args={"expression": "6*7"}, tool_context=None))
    finally:
        await toolset.close()


asyncio.run(main(*sys.argv[1:]))
