"""An MCP server whose tools show what the console can draw."""

import base64
import struct
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import AudioContent, CallToolResult, EmbeddedResource, ImageContent, TextContent, TextResourceContents
from pydantic import BaseModel, Field

from tests.gateway.mcp_client.mcp_servers import hide_modern_protocol
from tests.stack import serve_asgi

ATTACK = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
PAGE = "<!doctype html><p id=said>page</p><script>document.getElementById('said').textContent = 'a live page'</script>"
BOARD = """<!doctype html><p id=said>nothing</p><script>
const post = message => parent.postMessage({jsonrpc: '2.0', ...message}, '*');
const said = document.getElementById('said');
addEventListener('message', ({data}) => {
  if (data.id === 1) post({method: 'ui/notifications/initialized'});
  if (data.method === 'ui/notifications/tool-result') {
    said.textContent = 'score ' + data.params.structuredContent.score;
    post({id: 2, method: 'tools/call', params: {name: 'delete_task'}});
  }
  if (data.id === 2) said.textContent += data.error ? ', refused' : ', called';
});
let origin = ''; try { origin = parent.document.title } catch { origin = 'no access' }
post({id: 1, method: 'ui/initialize', params: {}});
document.title = origin;
</script>"""


def make_picture(width: int = 48, height: int = 32) -> str:
    """Return a PNG of one colour as base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x24\x56\xc9" * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def make_sound() -> str:
    """Return a WAV of silence as base64."""
    samples = b"\0" * 400
    header = (
        b"RIFF"
        + struct.pack("<I", 36 + len(samples))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    )
    return base64.b64encode(header + b"data" + struct.pack("<I", len(samples)) + samples).decode()


class Seat(BaseModel):
    """The answer of a person."""

    row: Literal["front", "back"]
    count: int = Field(ge=1, le=9)
    window: bool = False
    note: str = Field(default="", description=f"Anything else {ATTACK}")


class Address(BaseModel):
    """A nested argument."""

    city: str
    zip: str | None = None


class ShowcaseServer:
    """The server, and the address at which it is."""

    def __init__(self) -> None:
        self.url = ""
        self.mcp: MCPServer[Any] = MCPServer("showcase", log_level="ERROR")
        _register_results(self.mcp)
        _register_forms(self.mcp)


def _register_results(mcp: MCPServer[Any]) -> None:
    @mcp.tool(title=f"Sales {ATTACK}", description=f"Report the sales of some months. {ATTACK}")
    async def report_sales(months: int = 3) -> CallToolResult:
        rows = [{"month": f"M{n}", "sales": n * 10, "note": ATTACK} for n in range(1, months + 1)]
        return CallToolResult(
            content=[TextContent(text=f"{months} months {ATTACK}")], structured_content={"rows": rows}
        )

    @mcp.tool()
    async def draw_picture() -> CallToolResult:
        """Draw a picture, and say something."""
        image = ImageContent(data=make_picture(), mime_type="image/png")
        return CallToolResult(content=[image, AudioContent(data=make_sound(), mime_type="audio/wav")])

    @mcp.tool()
    async def open_page() -> CallToolResult:
        """Show a page."""
        page = TextResourceContents(uri="ui://showcase/page", mime_type="text/html;profile=mcp-app", text=PAGE)
        return CallToolResult(content=[EmbeddedResource(resource=page)])

    meta = {"ui": {"resourceUri": "ui://showcase/board"}}

    @mcp.tool(meta=meta)
    async def open_board() -> CallToolResult:
        """Show a board."""
        return CallToolResult(content=[TextContent(text="a board")], structured_content={"score": 42})

    @mcp.resource("ui://showcase/board", mime_type="text/html;profile=mcp-app")
    async def board() -> str:
        """The page of the board."""
        return BOARD


def _register_forms(mcp: MCPServer[Any]) -> None:
    @mcp.tool()
    async def send_parcel(
        to: Address,
        weight: float,
        size: Literal["small", "large"] = "small",
        labels: list[Literal["fragile", "cold"]] | None = None,
        insured: bool = False,
        extra: dict[str, int] | None = None,
    ) -> str:
        """Send a parcel."""
        return f"{to.city}/{to.zip} {weight} {size} {labels} {insured} {extra}"

    @mcp.tool()
    async def book_seat(ctx: Context[Any]) -> str:
        """Book a seat, which a person chooses."""
        answer = await ctx.elicit(f"Where do you sit? {ATTACK}", Seat)
        return f"{answer.action} {answer.data if answer.action == 'accept' else ''}"

    @mcp.prompt()
    async def summary(subject: str) -> str:
        """Ask for a summary."""
        return f"Sum up {subject}. {ATTACK}"

    @mcp.resource("showcase://note", mime_type="text/plain")
    async def note() -> str:
        """A note."""
        return f"Good day. {ATTACK}"


@asynccontextmanager
async def serve_showcase() -> AsyncGenerator[ShowcaseServer]:
    """Serve the tools over real HTTP."""
    server = ShowcaseServer()
    async with serve_asgi(hide_modern_protocol(server.mcp.streamable_http_app())) as address:
        server.url = f"{address}/mcp"
        yield server
