"""The gateway as an MCP server at /mcp."""
