"""OAuth 2.1 towards protected MCP servers: tokens and sign-in."""
