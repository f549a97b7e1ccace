"""The HTTP API: routes, security, rate limits and the MCP endpoint."""
