"""A stdio MCP server whose results are large."""

from typing import Any

from mcp.server.mcpserver import MCPServer

mcp: MCPServer[Any] = MCPServer("large", log_level="ERROR")


@mcp.tool(structured_output=False)
def repeat(size: int) -> str:
    """Return a text of so many characters."""
    return "x" * size


if __name__ == "__main__":
    mcp.run("stdio")
