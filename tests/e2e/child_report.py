"""A stdio MCP server that reports what it inherited: descriptors and environment."""

import os
from pathlib import Path

DESCRIPTORS: dict[str, str] = {}
for name in os.listdir("/proc/self/fd"):  # before any import opens files
    try:
        DESCRIPTORS[name] = os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:  # the descriptor of the listing
        continue
ENVIRONMENT = Path("/proc/self/environ").read_text().split("\0")

if __name__ == "__main__":
    from mcp.server.mcpserver import MCPServer

    mcp = MCPServer("report")

    @mcp.tool()
    def inherited() -> dict[str, list[str]]:
        """List the descriptors and the variables that this process started with."""
        return {
            "descriptors": sorted(f"{name} {target}" for name, target in DESCRIPTORS.items()),
            "environment": sorted(filter(None, ENVIRONMENT)),
            "pid": [str(os.getpid())],
        }

    mcp.run("stdio")
