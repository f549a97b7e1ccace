"""Requests of OpenAI's Responses API.

Gateway tools appear as MCP tools of the gateway's servers.
"""

from typing import Annotated, Any, Literal, cast
from uuid import UUID

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gateway.common.urls import strip_url_secrets
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Message, Parameters, Role, ToolCall, ToolChoice, ToolSpec, TurnRequest
from gateway.wire.client_tools import CLIENT_CALL_ID, ToolName, build_client_tool
from gateway.wire.openai_refusals import refuse_unsupported_response
from gateway.wire.openai_response_ids import APPROVAL_ID_PATTERN, parse_approval_id, parse_response_id
from gateway.wire.openai_response_input import parse_content
from gateway.wire.request_model import ItemList, RequestModel, limit_entries


class _InputItem(BaseModel):
    """Input item. Additional fields of an output item are accepted and ignored."""

    model_config = ConfigDict(extra="ignore")


class MessageItem(_InputItem):
    """Message of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | ItemList[JsonObject]


class FunctionCallItem(_InputItem):
    """Call of a client tool. The model's server may need its `extra_content`."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=128)
    arguments: str = "{}"
    extra_content: object = None


class FunctionCallOutputItem(_InputItem):
    """Result of a client tool's call."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=128)
    output: str | ItemList[JsonObject]


class McpCallItem(_InputItem):
    """Call of a gateway tool, with its result."""

    type: Literal["mcp_call"]
    id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=128)
    arguments: str = "{}"
    output: str | None = None
    error: object = None


class ApprovalItem(_InputItem):
    """Answer to an approval request."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str = Field(pattern=APPROVAL_ID_PATTERN)
    approve: bool

    @property
    def input_id(self) -> UUID:
        return parse_approval_id(self.approval_request_id)


class IgnoredItem(_InputItem):
    """Output item that is not sent to the model."""

    type: Literal["reasoning", "mcp_list_tools", "mcp_approval_request"]


def _add_default_type(item: object) -> object:
    """Make an item without a type a message.

    The type alone then selects the model of an item.
    """
    if not isinstance(item, dict):
        return item
    fields = cast(JsonObject, item)
    return fields if fields.get("type") is not None else {**fields, "type": "message"}


InputItem = Annotated[
    MessageItem | FunctionCallItem | FunctionCallOutputItem | McpCallItem | ApprovalItem | IgnoredItem,
    Field(discriminator="type"),
    BeforeValidator(_add_default_type),
]


class FunctionTool(RequestModel):
    """Tool that the client runs."""

    type: Literal["function"]
    name: ToolName
    description: str | None = Field(default=None, max_length=8_192)
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolNames(RequestModel):
    """Filter that selects tools by name, by `read_only`, or by both."""

    tool_names: ItemList[str] | None = None
    read_only: bool | None = None


class ApprovalFilter(RequestModel):
    """Tools whose calls always or never need approval."""

    always: ToolNames | None = None
    never: ToolNames | None = None


class McpTool(RequestModel):
    """MCP server of the gateway, selected by its name."""

    type: Literal["mcp"]
    server_label: str = Field(max_length=128)
    server_url: str | None = Field(default=None, description="Must be the configured URL of the server.")
    server_description: str | None = None
    allowed_tools: ItemList[str] | ToolNames | None = None
    require_approval: Literal["always", "never"] | ApprovalFilter | None = None


Tool = Annotated[FunctionTool | McpTool, Field(discriminator="type")]


class FunctionChoice(RequestModel):
    """Choice of a client tool that the model must call."""

    type: Literal["function"]
    name: str


class McpChoice(RequestModel):
    """Choice of a gateway tool that the model must call."""

    type: Literal["mcp"]
    server_label: str
    name: str


class Reasoning(BaseModel):
    """Options for reasoning models. `summary` is ignored."""

    effort: Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: object = None


class TextFormat(RequestModel):
    """Format of the answer.

    Text, any JSON object, or JSON that matches a schema.
    """

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(RequestModel):
    """Options of the answer's text. `verbosity` is ignored."""

    format: TextFormat | None = None
    verbosity: object = None


class ConversationRef(RequestModel):
    """Conversation to continue."""

    id: str


class ResponseRequest(RequestModel):
    """Request in OpenAI's format.

    Some fields are accepted and ignored, for example `service_tier`.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"input": "What is 23*19?"}]})

    input: str | Annotated[ItemList[InputItem], Field(min_length=1)]
    model: str | None = Field(default=None, min_length=1, max_length=200)
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationRef | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16), limit_entries(16)] | None = None
    tools: ItemList[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | McpChoice | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    user: str | None = Field(default=None, max_length=256)
    truncation: object = None
    include: object = None
    stream_options: object = None
    max_tool_calls: object = None
    service_tier: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_retention: object = None
    top_logprobs: Literal[0] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        return refuse_unsupported_response(data)

    @property
    def approvals(self) -> list[ApprovalItem]:
        """The answers to approval requests in the input.

        Raises:
            InvalidRequest: the input also has other items, or `previous_response_id` is missing.
        """
        items = self.input if isinstance(self.input, list) else []
        approvals = [item for item in items if isinstance(item, ApprovalItem)]
        if approvals and not all(isinstance(item, ApprovalItem | IgnoredItem | McpCallItem) for item in items):
            raise InvalidRequest("input: approval responses cannot be combined with other items.", param="input")
        if approvals and self.previous_response_id is None:
            message = "previous_response_id: required with approval responses; the id of the response that asked."
            raise InvalidRequest(message, param="previous_response_id")
        return approvals

    def to_turn_request(
        self,
        *,
        specs: tuple[ToolSpec, ...],
        urls: dict[str, str | None],
        idempotency_key: str | None = None,
    ) -> TurnRequest:
        """Convert to the request that all wire formats share.

        `specs` are the gateway's tools, `urls` the URLs of its servers by name.

        Raises:
            InvalidRequest: the request names a server that is not configured, or contradicts itself.
        """
        if self.background and self.store is False:
            raise InvalidRequest("background: a background response must be stored.", param="background")
        effort = self.reasoning.effort if self.reasoning else None
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_output_tokens,
            reasoning_effort=effort,
            parallel_tool_calls=self.parallel_tool_calls,
        )
        selected, approve = self._select_tools(specs, urls)
        parent = (
            parse_response_id(self.previous_response_id, "previous_response_id")[0]
            if self.previous_response_id
            else None
        )
        conversation = self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation
        functions = [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]
        return TurnRequest(
            messages=tuple(to_messages(self.input)),
            model=self.model or "",
            parameters=parameters,
            tools=None if selected is None else tuple(spec.name for spec in selected),
            tool_choice=self._parse_tool_choice(specs),
            conversation_id=conversation,
            parent_turn_id=parent,
            system=self.instructions,
            user_label=self.user,
            on_disconnect="continue" if self.background else "cancel",
            idempotency_key=idempotency_key,
            store=self.store is not False,
            client_tools=tuple(build_client_tool(tool.name, tool.description, tool.parameters) for tool in functions),
            response_format=self._parse_response_format(),
            metadata=self.metadata or {},
            approve=approve,
            echo=self._build_echo(specs if selected is None else selected),
        )

    def _select_tools(
        self, specs: tuple[ToolSpec, ...], urls: dict[str, str | None]
    ) -> tuple[tuple[ToolSpec, ...] | None, tuple[str, ...]]:
        """Return the allowed gateway tools, and tools that need approval.

        None as allowed tools: all.
        """
        if self.tools is None:
            return None, ()
        selected: list[ToolSpec] = []
        approve: list[str] = []
        for index, tool in enumerate(self.tools):
            if not isinstance(tool, McpTool):
                continue
            path = f"tools.{index}"
            if tool.server_label not in urls:
                configured = ", ".join(sorted(urls)) or "none"
                message = f"{path}.server_label: {tool.server_label!r} is not configured; configured: {configured}."
                raise InvalidRequest(message, param=f"{path}.server_label")
            if tool.server_url is not None and strip_url_secrets(tool.server_url) != urls[tool.server_label]:
                message = f"{path}.server_url: only the administrator configures servers; omit the URL."
                raise InvalidRequest(message, param=f"{path}.server_url")
            matching = [
                spec for spec in specs if spec.server == tool.server_label and _matches_filter(spec, tool.allowed_tools)
            ]
            selected += matching
            approve += [spec.name for spec in matching if _needs_approval(spec, tool.require_approval)]
        return tuple(selected), tuple(approve)

    def _parse_tool_choice(self, specs: tuple[ToolSpec, ...]) -> ToolChoice | None:
        choice = self.tool_choice
        if choice is None or isinstance(choice, str):
            return choice
        name = choice.name
        if isinstance(choice, McpChoice):
            label, tool = choice.server_label, choice.name
            name = next((s.name for s in specs if s.server == label and tool in (s.tool, s.name)), choice.name)
        return {"type": "function", "function": {"name": name}}

    def _parse_response_format(self) -> JsonObject | None:
        text_format = self.text.format if self.text else None
        if text_format is None or text_format.type == "text":
            return None
        if text_format.type == "json_object":
            return {"type": "json_object"}
        schema = {"name": text_format.name or "answer", "schema": text_format.schema_, "strict": text_format.strict}
        return {"type": "json_schema", "json_schema": {n: value for n, value in schema.items() if value is not None}}

    def _build_echo(self, specs: tuple[ToolSpec, ...]) -> JsonObject:
        """Build the fields that the response repeats, and its tools by server."""
        servers: dict[str, list[str]] = {}
        for spec in specs if self.previous_response_id is None else ():
            servers.setdefault(spec.server, []).append(spec.name)
        fields = {
            "background",
            "instructions",
            "max_output_tokens",
            "metadata",
            "parallel_tool_calls",
            "reasoning",
            "store",
            "previous_response_id",
            "temperature",
            "text",
            "tool_choice",
            "tools",
            "top_p",
            "truncation",
            "user",
        }
        echo = self.model_dump(mode="json", by_alias=True, include=fields, exclude_none=True)
        return {"response": echo, "servers": servers}


def _matches_filter(spec: ToolSpec, tool_filter: list[str] | ToolNames | None) -> bool:
    if tool_filter is None:
        return True
    names = tool_filter if isinstance(tool_filter, list) else tool_filter.tool_names
    read_only = tool_filter.read_only if isinstance(tool_filter, ToolNames) else None
    is_named = names is None or spec.tool in names or spec.name in names
    return is_named and (read_only is None or read_only == spec.read_only)


def _needs_approval(spec: ToolSpec, policy: Literal["always", "never"] | ApprovalFilter | None) -> bool:
    """Return whether the request requires approval.

    The server's policy may require it as well.
    """
    if not isinstance(policy, ApprovalFilter):
        return policy == "always"
    if policy.always is not None and _matches_filter(spec, policy.always):
        return True
    return policy.never is not None and not _matches_filter(spec, policy.never)


def to_messages(items: str | list[InputItem]) -> list[Message]:
    """Convert input items to messages.

    Consecutive calls become one message of the assistant.
    """
    if isinstance(items, str):
        return [Message("user", items)]
    # With ids of client calls, the gateway restores the calls of its own tools beside them, so these are skipped here.
    restores_history = any(
        isinstance(item, FunctionCallItem) and CLIENT_CALL_ID.fullmatch(item.call_id) for item in items
    )
    messages: list[Message] = []
    for item in items:
        match item:
            case MessageItem():
                role: Role = "system" if item.role == "developer" else item.role
                messages.append(Message(role, parse_content(item.content)))
            case FunctionCallItem():
                call = ToolCall(item.call_id, item.name, item.arguments, extra_content=item.extra_content)
                _add_call(messages, call)
            case FunctionCallOutputItem():
                output = item.output if isinstance(item.output, str) else parse_content(item.output)
                messages.append(Message("tool", output, tool_call_id=item.call_id))
            case McpCallItem() if not restores_history:
                messages.append(Message("assistant", None, (ToolCall(item.id, item.name, item.arguments),)))
                result = item.output if item.error is None else f"Error: {item.error}"
                messages.append(Message("tool", result or "(no output)", tool_call_id=item.id))
            case _:
                pass
    if not messages:
        raise InvalidRequest("input: must contain at least one message or tool result.", param="input")
    return messages


def _add_call(messages: list[Message], call: ToolCall) -> None:
    if messages and messages[-1].role == "assistant" and (messages[-1].tool_calls or messages[-1].content):
        messages[-1] = msgspec.structs.replace(messages[-1], tool_calls=(*messages[-1].tool_calls, call))
    else:
        messages.append(Message("assistant", None, (call,)))
