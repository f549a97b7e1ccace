"""Routes for connected MCP servers: configuration, resources, prompts and sign-in."""
