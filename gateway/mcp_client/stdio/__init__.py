"""Commands that serve MCP over standard input and output."""
