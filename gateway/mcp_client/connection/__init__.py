"""The connection to one MCP server: life cycle, session, tool calls, tool list and status."""
