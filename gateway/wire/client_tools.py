"""Tools that the client runs itself, in OpenAI's format."""

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from gateway.domain.messages import JsonObject, ToolSpec
from gateway_runtime.requests.model import RequestModel

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CLIENT_CALL_ID = re.compile(r"call_[0-9a-f]{32}_\d+_\d+")
"""Id that the gateway gives a call of a client's tool."""


class FunctionBody(RequestModel):
    """Definition of a client tool. `parameters` is a JSON schema."""

    name: ToolName
    description: str | None = Field(default=None, max_length=32_768)
    parameters: JsonObject | None = None
    strict: bool | None = None
    cache_control: object = Field(default=None, exclude=True)


class ToolBody(RequestModel):
    """Tool that the client runs."""

    type: Literal["function"]
    function: FunctionBody
    cache_control: object = Field(default=None, exclude=True)

    def to_tool_spec(self) -> ToolSpec:
        function = self.function
        return build_client_tool(function.name, function.description, function.parameters)


def build_client_tool(name: str, description: str | None, parameters: JsonObject | None) -> ToolSpec:
    """Build the specification of a client tool."""
    schema = parameters or {"type": "object", "properties": {}}
    return ToolSpec(name, "", name, description or name, schema, client=True)
