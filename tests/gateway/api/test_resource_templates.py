"""Resources that MCP hosts read by templates of RFC 6570."""

from typing import Any

from mcp.server.mcpserver import MCPServer

from gateway.simulator import Simulator
from tests.gateway.test_mcp_endpoint import connect_host
from tests.stack import serve_asgi, serve_gateway

URIS = {
    "search://items": "items of None",
    "search://items?q=camels": "items of camels",
    "search://items?limit=5&q=camels": "items of camels",
    "books://by-id?id=7": "book 7",
    "file://docs/a/b/c": "docs a/b/c",
    "note://today.md": "note in md",
    "text://any/where?x=1": "text any/where",
}


def create_app() -> Any:
    mcp: MCPServer[Any] = MCPServer("library", log_level="ERROR")

    @mcp.resource("search://items{?q,limit}")
    async def search(q: str | None = None, limit: str = "10") -> str:
        return f"items of {q}"

    @mcp.resource("books://by-id{?id}")
    async def book(id: str = "") -> str:  # noqa: A002 - the name in the template
        return f"book {id}"

    @mcp.resource("file://docs{/path*}")
    async def document(path: list[str]) -> str:
        return f"docs {'/'.join(path)}"

    @mcp.resource("note://today{.ext}")
    async def note(ext: str) -> str:
        return f"note in {ext}"

    @mcp.resource("text://{+path}{?x}")
    async def text(path: str, x: str = "") -> str:
        return f"text {path}"

    return mcp.streamable_http_app()


async def test_host_reads_resources_by_templates_of_every_kind(database_url: str, simulator: Simulator) -> None:
    async with (
        serve_asgi(create_app()) as url,
        serve_gateway(database_url, simulator, f"{url}/mcp") as gateway,
        connect_host(gateway, "auto") as modern,
        connect_host(gateway, "legacy") as legacy,
    ):
        for client in (modern, legacy):
            read = {uri: (await client.read_resource(uri)).contents[0] for uri in URIS}
            assert {uri: content.text for uri, content in read.items()} == URIS  # type: ignore[union-attr]
        assert (await gateway.get("/api/v1/mcp/resources/read?uri=search://items?other=1")).status == 404
