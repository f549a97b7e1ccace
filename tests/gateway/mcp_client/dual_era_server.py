"""A server of both protocol eras that asks its callers for input."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel
from starlette.types import ASGIApp

from tests.gateway.mcp_client.mcp_servers import hide_modern_protocol


class Seat(BaseModel):
    row: str


async def ask_for_seat() -> Elicit[Seat]:
    return Elicit("Where shall the seat be?", Seat)


def ask_for_row() -> InputRequiredResult:
    question = ElicitRequestFormParams(message="Which row?", requested_schema=Seat.model_json_schema())
    return InputRequiredResult(input_requests={"row": ElicitRequest(params=question)})


def create_app(*, modern: bool) -> ASGIApp:
    """Create the HTTP app; with `modern=False` it knows only the legacy protocol."""
    mcp: MCPServer[Any] = MCPServer("dual", log_level="ERROR")

    @mcp.tool()
    async def reserve(seat: Annotated[Seat, Resolve(ask_for_seat)]) -> str:
        """Reserve a seat, in either era."""
        return f"reserved in row {seat.row}"

    @mcp.tool()
    async def reserve_inline(ctx: Context[Any]) -> str:
        """Reserve a seat, asking during the call whoever calls."""
        answer = await ctx.session.elicit_form(
            "Where shall the seat be?", Seat.model_json_schema(), ctx.request_context.request_id
        )
        return f"{answer.action} {answer.content}"

    @mcp.tool()
    async def show_capabilities(ctx: Context[Any]) -> str:
        """Show what the client declares."""
        declared = ctx.session.client_capabilities
        return declared.model_dump_json(exclude_none=True) if declared else "null"

    @mcp.tool()
    async def sample_inline(ctx: Context[Any]) -> str:
        """Ask the caller's model during the call."""
        message = SamplingMessage(role="user", content=TextContent(text="Capital of France?"))
        answer = await ctx.session.create_message(
            messages=[message], max_tokens=10, related_request_id=ctx.request_context.request_id
        )
        return f"the model says {answer.content.text}"  # type: ignore[union-attr]

    @mcp.tool(structured_output=False)
    async def collect(ctx: Context[Any]) -> str | InputRequiredResult:
        """Ask the caller's model, and for its roots, before the answer."""
        responses = ctx.input_responses or {}
        if "capital" in responses and "roots" in responses:
            capital: Any = responses["capital"]
            roots: Any = responses["roots"]
            return f"{capital.content.text} {roots.roots[0].uri}"
        message = SamplingMessage(role="user", content=TextContent(text="Capital of France?"))
        sampling = CreateMessageRequest(params=CreateMessageRequestParams(messages=[message], max_tokens=10))
        return InputRequiredResult(input_requests={"capital": sampling, "roots": ListRootsRequest()})

    @mcp.prompt()
    async def plan(ctx: Context[Any]) -> str | InputRequiredResult:
        """Plan an evening in a row that the user chooses."""
        answer: Any = (ctx.input_responses or {}).get("row")
        return f"Plan it in row {answer.content['row']}." if answer else ask_for_row()

    @mcp.resource("seat://{hall}/map")
    async def seat_map(hall: str, ctx: Context[Any]) -> str | InputRequiredResult:
        """The map of a row that the user chooses."""
        answer: Any = (ctx.input_responses or {}).get("row")
        return f"map of row {answer.content['row']}" if answer else ask_for_row()

    app = mcp.streamable_http_app()
    return app if modern else hide_modern_protocol(app)
