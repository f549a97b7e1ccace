"""The agent gateway.

It serves chats over HTTP, runs the tools of MCP servers and stores every turn in Postgres.
"""

__version__ = "0.2.0"
