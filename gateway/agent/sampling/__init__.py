"""Model calls that MCP servers ask for during tool calls."""
