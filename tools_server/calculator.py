"""The tool `calculator`: exact arithmetic for a model."""

from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from tools_server.arithmetic import CalculationError, evaluate_expression, format_number

_MAX_EXACT_JSON_INTEGER = 2**53


class Calculation(BaseModel):
    expression: str
    result: int | float | str = Field(
        description="A number; an integer beyond 2**53, which many JSON readers would round, as a string of its digits."
    )


def register_calculator(mcp: MCPServer[object]) -> None:
    """Add the tool to a server."""

    @mcp.tool(
        title="Calculator",
        annotations=ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    async def calculator(
        expression: Annotated[str, Field(description="Such as 23*19, (1+2)/3, 2**64, sqrt(2), sin(pi/6) or 15/100*80")],
    ) -> Annotated[CallToolResult, Calculation]:
        """Evaluate an arithmetic expression. Use this for every calculation: it is exact, you are not.

        Takes + - * / // % (remainder) ** or ^ (power) << >> and parentheses, the constants pi, e and tau, and the
        functions abs, ceil, comb, cos, exp, factorial, floor, gcd, hypot, lcm, ln, log (natural, or log(x, base)),
        log10, log2, max, min, perm, round, sin, sqrt, tan and others of their kind; angles are in radians. Integers
        are exact up to 3,900 digits. Write numbers without thousands separators or units.
        """
        try:
            value = evaluate_expression(expression)
        except CalculationError as error:
            raise ToolError(f"Cannot calculate {expression[:100]!r}: {error}.") from None
        is_exact = isinstance(value, float) or abs(value) <= _MAX_EXACT_JSON_INTEGER
        structured = Calculation(expression=expression.strip(), result=value if is_exact else str(value))
        text = f"{expression.strip()} = {format_number(value)}"
        return CallToolResult(
            content=[TextContent(type="text", text=text)], structured_content=structured.model_dump(mode="json")
        )
