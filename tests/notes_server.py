"""An MCP server that counts the calls of its tools."""

import asyncio
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations


class NotesServer:
    """A server whose tool `note` takes effect at each call.

    A call with the text `held_text` waits until `released`.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.held_text: str | None = None
        self.released = asyncio.Event()
        self.mcp: MCPServer[Any] = MCPServer("notes", log_level="ERROR")

        @self.mcp.tool()
        async def note(text: str) -> str:
            """Write a note. Each call takes effect."""
            self.calls.append(("note", text))
            if text == self.held_text:
                await self.released.wait()
            return f"Note {len(self.calls)}: {text}."

        @self.mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
        async def look(place: str, depth: int = 1) -> str:
            """Look at a place."""
            self.calls.append(("look", place))
            return f"In the {place} is a trunk, at depth {depth}."
