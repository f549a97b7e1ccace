"""Tools in requests of OpenAI's Responses API."""

from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.domain.messages import JsonObject, ToolSpec
from gateway.wire.client_tools import ToolName
from gateway_runtime.requests.model import ItemList, RequestModel

IgnoredToolType = Literal[
    "namespace",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "custom",
    "tool_search",
]
IGNORED_TOOL_TYPES: tuple[str, ...] = get_args(IgnoredToolType)


class FunctionTool(RequestModel):
    """Tool that the client runs."""

    type: Literal["function"]
    name: ToolName
    description: str | None = Field(default=None, max_length=32_768)
    parameters: JsonObject | None = None
    strict: bool | None = None
    output_schema: object = Field(default=None, exclude=True)
    allowed_callers: object = Field(default=None, exclude=True, description="Left out: the model itself calls.")
    defer_loading: object = Field(default=None, exclude=True, description="Left out: the model gets all tools.")


class ToolNames(RequestModel):
    """Filter that selects tools by name, by `read_only`, or by both."""

    tool_names: ItemList[str] | None = None
    read_only: bool | None = None


class ApprovalFilter(RequestModel):
    """Tools whose calls always or never need approval."""

    always: ToolNames | None = None
    never: ToolNames | None = None


class McpTool(RequestModel):
    """MCP server of the gateway, selected by its name or its URL."""

    type: Literal["mcp"]
    server_label: str = Field(max_length=128, description="May be left out beside `server_url`.")
    server_url: str | None = Field(default=None, description="Must be the configured URL of the server.")
    server_description: str | None = None
    allowed_tools: ItemList[str] | ToolNames | None = None
    require_approval: Literal["always", "never"] | ApprovalFilter | None = None
    headers: object = Field(default=None, exclude=True, description="Left out: the gateway has its own credentials.")
    authorization: object = Field(default=None, exclude=True, description="Left out, like `headers`.")
    connector_id: None = Field(default=None, exclude=True)
    tunnel_id: None = Field(default=None, exclude=True)
    allowed_callers: object = Field(default=None, exclude=True, description="Left out: the model itself calls.")
    defer_loading: object = Field(default=None, exclude=True, description="Left out: the model gets all tools.")

    @model_validator(mode="before")
    @classmethod
    def _select_by_url(cls, tool: object) -> object:
        if not isinstance(tool, dict) or cast(JsonObject, tool).get("server_url") is None:
            return cast(object, tool)
        return {"server_label": "", **cast(JsonObject, tool)}


class IgnoredTool(BaseModel):
    """Tool that is left out with a warning, because it runs elsewhere.

    Codex offers such tools beside its functions.
    """

    model_config = ConfigDict(extra="ignore")

    type: IgnoredToolType


Tool = Annotated[FunctionTool | McpTool | IgnoredTool, Field(discriminator="type")]


class FunctionChoice(RequestModel):
    """Choice of a client tool that the model must call."""

    type: Literal["function"]
    name: str


class McpChoice(RequestModel):
    """Choice of a gateway tool that the model must call.

    Without a name, it is any tool of the server.
    """

    type: Literal["mcp"]
    server_label: str
    name: str | None = None


class AllowedMcpTool(RequestModel):
    """Gateway tools that may be called: one, or all of a server."""

    type: Literal["mcp"]
    server_label: str
    name: str | None = None


class AllowedTool(BaseModel):
    """Client tool that may be called.

    Tools of other types are left out.
    """

    type: str
    name: str | None = None


class AllowedToolsChoice(RequestModel):
    """Choice of several tools, and whether the model must call one."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: ItemList[AllowedMcpTool | AllowedTool] = Field(max_length=128)


def matches_filter(spec: ToolSpec, tool_filter: list[str] | ToolNames | None) -> bool:
    if tool_filter is None:
        return True
    names = tool_filter if isinstance(tool_filter, list) else tool_filter.tool_names
    read_only = tool_filter.read_only if isinstance(tool_filter, ToolNames) else None
    is_named = names is None or spec.tool in names or spec.name in names
    return is_named and (read_only is None or read_only == spec.read_only)


def needs_approval(spec: ToolSpec, policy: Literal["always", "never"] | ApprovalFilter | None) -> bool:
    """Return whether the request requires approval.

    The server's policy may require it as well.
    """
    if not isinstance(policy, ApprovalFilter):
        return policy == "always"
    if policy.always is not None and matches_filter(spec, policy.always):
        return True
    return policy.never is not None and not matches_filter(spec, policy.never)


def list_allowed_names(choice: AllowedToolsChoice, specs: tuple[ToolSpec, ...]) -> list[str]:
    """Return the names of the tools that a choice allows."""
    names: list[str] = []
    for tool in choice.tools:
        if isinstance(tool, AllowedMcpTool):
            label = tool.server_label
            names += [s.name for s in specs if s.server == label and tool.name in (None, s.tool, s.name)]
        elif tool.name is not None:
            names.append(tool.name)
    return names
