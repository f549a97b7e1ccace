"""Connections to MCP servers, and the toolbox of all their tools."""
