"""OAuth 2.1 towards protected MCP servers: access tokens for requests, and the sign-in of users."""
