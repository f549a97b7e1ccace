"""FastMCP's client as a host: `python use_fastmcp.py URL KEY`."""

import asyncio
import sys

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport


async def main(url: str, key: str) -> None:
    async with Client(StreamableHttpTransport(url, headers={"Authorization": f"Bearer {key}"})) as client:
        print([tool.name for tool in await client.list_tools()])
        print((await client.call_tool("calculator", {"expression": "6*7"})).content)


asyncio.run(main(*sys.argv[1:]))
