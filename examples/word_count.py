"""A tool for the tool server, in a module of its own.

To serve it, copy this file to tools_server/ and add `register_word_count(mcp)` to `create_server` in
tools_server/server.py. To try it alone: python examples/word_count.py "one two two"
"""

import asyncio
import sys
from collections import Counter
from typing import Annotated, Any

from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field


class WordCount(BaseModel):
    words: int
    most_frequent: list[str] = Field(description="At most three words, the most frequent first.")


def register_word_count(mcp: MCPServer[Any]) -> None:
    @mcp.tool(title="Word count", annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    def word_count(text: Annotated[str, Field(description="Any text.")]) -> WordCount:
        """Count the words of a text and find the most frequent ones."""
        counts = Counter(text.lower().split())
        return WordCount(words=counts.total(), most_frequent=[word for word, _ in counts.most_common(3)])


async def main(text: str) -> None:
    mcp = MCPServer("try")
    register_word_count(mcp)
    async with Client(mcp) as client:
        print((await client.call_tool("word_count", {"text": text})).structured_content)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "one two two"))
