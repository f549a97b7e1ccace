"""OAuth 2.1 for protected MCP servers: sign-in and access tokens."""
