"""smolagents as a host: `python use_smolagents.py URL KEY`."""

import sys

from smolagents import MCPClient

url, key = sys.argv[1:]
with MCPClient(
    {"url": url, "transport": "streamable-http", "headers": {"Authorization": f"Bearer {key}"}},
    structured_output=True,
) as tools:
    by_name = {tool.name: tool for tool in tools}
    print(list(by_name))
    print(by_name["calculator"](expression="6*7"))
