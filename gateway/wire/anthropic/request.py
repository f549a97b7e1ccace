"""Requests in Anthropic's Messages format.

The gateway's own fields are in `x_gateway`.
"""

from collections.abc import Collection, Iterator
from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.common.urls import is_same_endpoint
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Message, Parameters, ToolChoice, ToolSpec, TurnRequest
from gateway.wire.anthropic.content import read_text, to_named_messages
from gateway.wire.client_tools import build_client_tool
from gateway.wire.openai_chat import GatewayOptions
from gateway.wire.request_fields import Unsupported, describe_unknown_fields, refuse_unsupported_field
from gateway.wire.tool_offer import ToolOffer
from gateway_runtime.requests.model import ItemList, RequestModel, limit_entries

_MAX_SHOWN_LENGTH = 80
_MAX_CONFIGS = 1_000
_EFFORT_BUDGETS = ((4_096, "low"), (16_384, "medium"))
"""Largest budget of thinking, in tokens, by effort; above: high."""


_UNSUPPORTED = {
    "thread": Unsupported("send the earlier messages, or x_gateway.conversation_id"),
    "compaction": Unsupported("leave it out: long conversations are shortened by the gateway"),
}
"""Fields that would change the answer."""


class MessageParam(BaseModel):
    """Message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | ItemList[JsonObject]


class ToolParam(BaseModel):
    """Tool of the client, or a selection of an MCP server's tools.

    A tool of another type runs at Anthropic; it is left out with a warning.
    """

    type: str | None = Field(default=None, max_length=100)
    name: str | None = Field(default=None, max_length=128, pattern=r"^[A-Za-z0-9_.-]+$")
    description: str | None = Field(default=None, max_length=32_768)
    input_schema: JsonObject | None = None
    mcp_server_name: str | None = Field(default=None, max_length=200)
    default_config: JsonObject | None = None
    configs: Annotated[dict[str, JsonObject], limit_entries(_MAX_CONFIGS)] | None = None


class McpServerParam(BaseModel):
    """MCP server of the gateway, by its name or its URL.

    A token is not forwarded: the gateway has its own credentials.
    """

    type: str | None = None
    name: str = Field(max_length=200)
    url: str | None = Field(default=None, max_length=2_000)
    tool_configuration: JsonObject | None = None


class ToolChoiceParam(BaseModel):
    """Whether and which tool the model must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, max_length=128)
    disable_parallel_tool_use: bool | None = None


class ThinkingBody(BaseModel):
    """Whether the answer shows the model's reasoning."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(default=None, ge=0)
    display: str | None = None


class OutputConfigBody(BaseModel):
    """Effort, and a JSON schema of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonObject | None = None


class MetadataBody(BaseModel):
    """Notes of the client."""

    user_id: str | None = Field(default=None, max_length=1_024)


class PromptBody(RequestModel):
    """Prompt of a request: model, messages and tools.

    Fields that are not known are ignored, with a warning.
    """

    model_config = ConfigDict(extra="allow")

    messages: ItemList[MessageParam] = Field(min_length=1)
    model: str | None = Field(default=None, min_length=1, max_length=200)
    system: str | ItemList[JsonObject] | None = None
    tools: ItemList[ToolParam] | None = Field(default=None, max_length=512)
    tool_choice: ToolChoiceParam | None = None
    mcp_servers: ItemList[McpServerParam] | None = Field(default=None, max_length=64)
    thinking: ThinkingBody | None = None
    output_config: OutputConfigBody | None = None
    output_format: JsonObject | None = None
    x_gateway: GatewayOptions | None = None
    betas: object = None
    cache_control: object = None
    container: object = None
    context_management: object = None
    inference_geo: object = None
    service_tier: object = None
    speed: object = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        fields = cast(JsonObject, data)
        for name in _UNSUPPORTED:
            refuse_unsupported_field(name, fields.get(name), _UNSUPPORTED)
        return fields

    @property
    def shows_thinking(self) -> bool:
        """Whether the answer has blocks of the model's reasoning."""
        thinking = self.thinking
        return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"

    @property
    def toolset(self) -> str | None:
        """Name of the toolset that the request asks for."""
        return None if self.x_gateway is None else self.x_gateway.toolset

    def to_turn_request(
        self,
        offer: ToolOffer,
        *,
        specs: tuple[ToolSpec, ...],
        urls: dict[str, str | None],
        idempotency_key: str | None = None,
    ) -> TurnRequest:
        """Convert to the request that all wire formats share.

        `specs` are the gateway's tools that the caller may use, `urls` the URLs of its servers by name.

        Raises:
            InvalidRequest: a block or a tool cannot be served, or a server is not configured.
        """
        options = self.x_gateway or GatewayOptions()
        system = read_text(self.system, "system")
        named = to_named_messages([(message.role, message.content) for message in self.messages])
        named = [*([(Message("system", system), "system")] if system else []), *named]
        own_tools = [tool for tool in self.tools or () if tool.type in (None, "custom")]
        return TurnRequest(
            messages=tuple(message for message, _ in named),
            message_paths=tuple(path for _, path in named),
            model=self.model or "",
            parameters=self._build_parameters(),
            tools=offer.select(self._list_named_tools(specs, urls), brings_tools=bool(self.tools)),
            tool_choice=self._parse_tool_choice(),
            conversation_id=options.conversation_id,
            parent_turn_id=options.parent_turn_id,
            on_disconnect=options.on_disconnect or "cancel",
            warnings=tuple(self._list_warnings()),
            idempotency_key=idempotency_key,
            approval=options.approval or "never",
            client_tools=tuple(_build_tool(tool, number) for number, tool in enumerate(own_tools)),
            response_format=self._parse_response_format(),
            drop_unsupported=True,
            cache_ttl=options.cache.ttl if options.cache else None,
            webhook_url=options.webhook_url,
            code=options.code or "key",
            toolset=options.toolset,
        )

    def _build_parameters(self) -> Parameters:
        choice = self.tool_choice
        disables_parallel = choice is not None and choice.disable_parallel_tool_use is True
        return Parameters(
            reasoning_effort=self._choose_effort(), parallel_tool_calls=False if disables_parallel else None
        )

    def _choose_effort(self) -> str | None:
        if self.output_config is not None and self.output_config.effort is not None:
            return self.output_config.effort
        if self.thinking is None or self.thinking.type != "enabled" or self.thinking.budget_tokens is None:
            return None
        budget = self.thinking.budget_tokens
        return next((effort for largest, effort in _EFFORT_BUDGETS if budget <= largest), "high")

    def _list_named_tools(
        self, specs: tuple[ToolSpec, ...], urls: dict[str, str | None]
    ) -> str | Collection[str] | None:
        """Return what the request says of the gateway's tools; see `ToolOffer`."""
        if self.x_gateway is not None and self.x_gateway.tools is not None:
            return self.x_gateway.tools
        servers = {server.name: server for server in self.mcp_servers or ()}
        toolsets = [(n, tool) for n, tool in enumerate(self.tools or ()) if tool.type == "mcp_toolset"]
        if not toolsets and not servers:
            return None if self.x_gateway is None else self.x_gateway.tool_selection
        selected: list[str] = []
        for number, toolset in toolsets:
            label = toolset.mcp_server_name or ""
            server = _find_server(label, servers.pop(label, None), urls, f"tools.{number}.mcp_server_name")
            selected += [spec.name for spec in specs if spec.server == server and _is_enabled(spec, toolset)]
        for label, body in servers.items():
            server = _find_server(label, body, urls, "mcp_servers")
            allowed = (body.tool_configuration or {}).get("allowed_tools")
            selected += [
                spec.name for spec in specs if spec.server == server and (allowed is None or spec.tool in allowed)
            ]
        return selected

    def _parse_tool_choice(self) -> ToolChoice | None:
        choice = self.tool_choice
        if choice is None:
            return None
        if choice.type == "tool":
            if not choice.name:
                raise InvalidRequest("tool_choice.name: required with the type tool.", param="tool_choice.name")
            return {"type": "function", "function": {"name": choice.name}}
        return "required" if choice.type == "any" else choice.type

    def _parse_response_format(self) -> JsonObject | None:
        requested = (self.output_config.format if self.output_config else None) or self.output_format
        if requested is None or requested.get("type") == "text":
            return None
        schema = requested.get("schema")
        if requested.get("type") != "json_schema" or not isinstance(schema, dict):
            message = "output_config.format: must be of the type json_schema, with a schema."
            raise InvalidRequest(message, param="output_config.format")
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}

    def _list_warnings(self) -> Iterator[str]:
        kinds = (tool.type for tool in self.tools or ())
        hosted = sorted({kind for kind in kinds if kind not in (None, "custom", "mcp_toolset")})
        if hosted:
            yield f"Tools of these types run at Anthropic alone, and were left out: {', '.join(hosted)}."
        yield from describe_unknown_fields(
            [name for name, value in (self.model_extra or {}).items() if value is not None]
        )


class MessagesRequest(PromptBody):
    """Request in Anthropic's format.

    What changes nothing is accepted and ignored, for example `service_tier` and `cache_control`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"max_tokens": 1024, "messages": [{"role": "user", "content": "What is 23*19?"}]}]
        },
    )

    max_tokens: int | None = Field(default=None, ge=1, description="Default: the maximum of the model.")
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stop_sequences: Annotated[ItemList[str], Field(max_length=4)] | None = None
    metadata: MetadataBody | None = None

    def _build_parameters(self) -> Parameters:
        return Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences or ()) or None,
            top_k=self.top_k,
        ).with_defaults(super()._build_parameters())


def _build_tool(tool: ToolParam, number: int) -> ToolSpec:
    if tool.name is None:
        raise InvalidRequest(f"tools.{number}.name: required.", param=f"tools.{number}.name")
    return build_client_tool(tool.name, tool.description, tool.input_schema)


def _find_server(label: str, body: McpServerParam | None, urls: dict[str, str | None], path: str) -> str:
    """Return the name of the gateway's server that a request means.

    Raises:
        InvalidRequest: the administrator has configured no such server.
    """
    if label in urls:
        return label
    url = None if body is None else body.url
    if (name := next((name for name, known in urls.items() if is_same_endpoint(url, known)), None)) is not None:
        return name
    configured = ", ".join(sorted(urls)) or "none"
    shown = label[:_MAX_SHOWN_LENGTH]
    raise InvalidRequest(f"{path}: the MCP server {shown!r} is not configured; configured: {configured}.", param=path)


def _is_enabled(spec: ToolSpec, toolset: ToolParam) -> bool:
    default = (toolset.default_config or {}).get("enabled", True)
    return (toolset.configs or {}).get(spec.tool, {}).get("enabled", default) is not False
