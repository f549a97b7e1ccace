"""An MCP server of your own with one tool.

mcp.json beside this file connects the gateway to it over stdio.

MCP_CONFIG=examples/mcp.json make run
python examples/stream_chat.py 'call weather_forecast with {"city": "Oslo"}'
"""

from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

FORECASTS = {"oslo": "snow, -4 °C", "rome": "sun, 17 °C"}

mcp = MCPServer("weather")


@mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
def forecast(city: Annotated[str, Field(description="A city, such as Oslo.")]) -> str:
    """Look up tomorrow's weather in a city."""
    if city.lower() not in FORECASTS:
        raise ToolError(f"No forecast for {city}. Known cities: {', '.join(FORECASTS)}.")
    return f"{city}: {FORECASTS[city.lower()]}"


if __name__ == "__main__":
    mcp.run("stdio")
