"""The agent gateway: HTTP chats in, MCP tools and Groq models behind, every turn kept in Postgres."""

__version__ = "0.1.0"
