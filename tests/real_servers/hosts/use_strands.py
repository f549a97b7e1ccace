"""Strands Agents as a host: `python use_strands.py URL KEY`."""

import sys

from mcp.client.streamable_http import streamablehttp_client
from strands.tools.mcp import MCPClient

url, key = sys.argv[1:]
with MCPClient(lambda: streamablehttp_client(url, headers={"Authorization": f"Bearer {key}"})) as client:
    print([tool.tool_name for tool in client.list_tools_sync()])
    print(client.call_tool_sync("1", "calculator", {"expression": "6*7"}))
