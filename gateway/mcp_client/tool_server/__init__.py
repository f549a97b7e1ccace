"""The tool server's own routes, beside MCP."""
