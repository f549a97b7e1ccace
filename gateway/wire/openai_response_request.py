"""Requests of OpenAI's Responses API. The gateway's tools are MCP tools there, as of servers that OpenAI calls."""

import re
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from gateway.common.urls import strip_url_secrets
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Message, Parameters, Role, ToolCall, ToolChoice, ToolSpec, TurnRequest
from gateway.wire.openai_chat import ToolName, build_client_tool
from gateway.wire.openai_response_ids import APPROVAL_ID_PATTERN, parse_approval_id, parse_response_id

_CLIENT_CALL = re.compile(r"call_[0-9a-f]{32}_\d+_\d+")


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _InputItem(BaseModel):
    """An input item; what an answer's item has besides is taken back and ignored."""

    model_config = ConfigDict(extra="ignore")


class MessageItem(_InputItem):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[JsonObject]


class FunctionCallItem(_InputItem):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=128)
    arguments: str = "{}"


class FunctionCallOutputItem(_InputItem):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=128)
    output: str | list[JsonObject]


class McpCallItem(_InputItem):
    type: Literal["mcp_call"]
    id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=128)
    arguments: str = "{}"
    output: str | None = None
    error: object = None


class ApprovalItem(_InputItem):
    type: Literal["mcp_approval_response"]
    approval_request_id: str = Field(pattern=APPROVAL_ID_PATTERN)
    approve: bool

    @property
    def input_id(self) -> UUID:
        return parse_approval_id(self.approval_request_id)


class IgnoredItem(_InputItem):
    """Items of answers that say nothing to a model."""

    type: Literal["reasoning", "mcp_list_tools", "mcp_approval_request"]


TypedItem = Annotated[
    MessageItem | FunctionCallItem | FunctionCallOutputItem | McpCallItem | ApprovalItem | IgnoredItem,
    Field(discriminator="type"),
]
InputItem = TypedItem | MessageItem


class FunctionTool(_StrictModel):
    type: Literal["function"]
    name: ToolName
    description: str | None = Field(default=None, max_length=8_192)
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolNames(_StrictModel):
    tool_names: list[str] | None = None
    read_only: bool | None = None


class ApprovalFilter(_StrictModel):
    always: ToolNames | None = None
    never: ToolNames | None = None


class McpTool(_StrictModel):
    """One of the gateway's servers, by its name."""

    type: Literal["mcp"]
    server_label: str = Field(max_length=128)
    server_url: str | None = Field(default=None, description="Only the address that the administrator has configured.")
    server_description: str | None = None
    allowed_tools: list[str] | ToolNames | None = None
    require_approval: Literal["always", "never"] | ApprovalFilter | None = None


Tool = Annotated[FunctionTool | McpTool, Field(discriminator="type")]


class FunctionChoice(_StrictModel):
    type: Literal["function"]
    name: str


class McpChoice(_StrictModel):
    type: Literal["mcp"]
    server_label: str
    name: str


class Reasoning(BaseModel):
    effort: Literal["none", "default", "minimal", "low", "medium", "high"] | None = None
    summary: object = None


class TextFormat(_StrictModel):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(_StrictModel):
    format: TextFormat | None = None
    verbosity: object = None


class ConversationRef(_StrictModel):
    id: str


class ResponseRequest(_StrictModel):
    """OpenAI's request. Fields that have no meaning here, but are harmless, are taken and ignored."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"input": "What is 23*19?"}]})

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    model: str | None = Field(default=None, min_length=1, max_length=200)
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationRef | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
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

    @property
    def approvals(self) -> list[ApprovalItem]:
        """The answers to approval requests; they come alone.

        Raises:
            InvalidRequest: other input comes with them.
        """
        items = self.input if isinstance(self.input, list) else []
        found = [item for item in items if isinstance(item, ApprovalItem)]
        if found and not all(isinstance(item, ApprovalItem | IgnoredItem | McpCallItem) for item in items):
            raise InvalidRequest("Answers to approval requests come without other input.", param="input")
        if found and self.previous_response_id is None:
            raise InvalidRequest("Name the response that asked for approval.", param="previous_response_id")
        return found

    def to_turn_request(
        self,
        *,
        specs: tuple[ToolSpec, ...],
        urls: dict[str, str | None],
        idempotency_key: str | None = None,
    ) -> TurnRequest:
        """The request in the gateway's own terms. `specs` are the gateway's tools, `urls` its servers' addresses.

        Raises:
            InvalidRequest: it names a server that is not configured.
        """
        if self.background and self.store is False:
            raise InvalidRequest("background: what runs in the background must be stored.", param="background")
        effort = self.reasoning.effort if self.reasoning else None
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_output_tokens,
            reasoning_effort="low" if effort == "minimal" else effort,
            parallel_tool_calls=self.parallel_tool_calls,
        )
        offered, approve = self._select_tools(specs, urls)
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
            tools=None if offered is None else tuple(spec.name for spec in offered),
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
            echo=self._build_echo(specs if offered is None else offered),
        )

    def _select_tools(
        self, specs: tuple[ToolSpec, ...], urls: dict[str, str | None]
    ) -> tuple[tuple[ToolSpec, ...] | None, tuple[str, ...]]:
        """The gateway's tools that may be used (None: all), and the names of those that need approval."""
        if self.tools is None:
            return None, ()
        offered: list[ToolSpec] = []
        approve: list[str] = []
        for index, tool in enumerate(self.tools):
            if not isinstance(tool, McpTool):
                continue
            where = f"tools.{index}"
            if tool.server_label not in urls:
                known = ", ".join(sorted(urls)) or "none"
                message = f"{where}.server_label: {tool.server_label!r} is not configured here; configured: {known}."
                raise InvalidRequest(message, param=f"{where}.server_label")
            if tool.server_url is not None and strip_url_secrets(tool.server_url) != urls[tool.server_label]:
                message = f"{where}.server_url: servers are the administrator's to configure; leave the address out."
                raise InvalidRequest(message, param=f"{where}.server_url")
            chosen = [
                spec for spec in specs if spec.server == tool.server_label and _matches_filter(spec, tool.allowed_tools)
            ]
            offered += chosen
            approve += [spec.name for spec in chosen if _needs_approval(spec, tool.require_approval)]
        return tuple(offered), tuple(approve)

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
        wanted = self.text.format if self.text else None
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {"type": "json_object"}
        schema = {"name": wanted.name or "answer", "schema": wanted.schema_, "strict": wanted.strict}
        return {"type": "json_schema", "json_schema": {n: value for n, value in schema.items() if value is not None}}

    def _build_echo(self, specs: tuple[ToolSpec, ...]) -> JsonObject:
        """What a response says of its request, and the tools that are listed in it."""
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
        told = self.model_dump(mode="json", by_alias=True, include=fields, exclude_none=True)
        return {"response": told, "servers": servers}


def _matches_filter(spec: ToolSpec, chosen: list[str] | ToolNames | None) -> bool:
    if chosen is None:
        return True
    names = chosen if isinstance(chosen, list) else chosen.tool_names
    read_only = chosen.read_only if isinstance(chosen, ToolNames) else None
    named = names is None or spec.tool in names or spec.name in names
    return named and (read_only is None or read_only == spec.read_only)


def _needs_approval(spec: ToolSpec, wanted: Literal["always", "never"] | ApprovalFilter | None) -> bool:
    """A request may ask for more approvals than the server's policy, never for fewer."""
    if not isinstance(wanted, ApprovalFilter):
        return wanted == "always"
    if wanted.always is not None and _matches_filter(spec, wanted.always):
        return True
    return wanted.never is not None and not _matches_filter(spec, wanted.never)


def to_messages(items: str | list[InputItem]) -> list[Message]:
    """Input items as messages. Calls in a row are one message of the assistant's."""
    if isinstance(items, str):
        return [Message("user", items)]
    # The gateway knows by the ids of such calls what its own tools did beside them.
    known = any(isinstance(item, FunctionCallItem) and _CLIENT_CALL.fullmatch(item.call_id) for item in items)
    messages: list[Message] = []
    for item in items:
        match item:
            case MessageItem():
                role: Role = "system" if item.role == "developer" else item.role
                messages.append(Message(role, _parse_content(item.content)))
            case FunctionCallItem():
                _add_call(messages, ToolCall(item.call_id, item.name, item.arguments))
            case FunctionCallOutputItem():
                output = item.output if isinstance(item.output, str) else _parse_content(item.output)
                messages.append(Message("tool", output, tool_call_id=item.call_id))
            case McpCallItem() if not known:
                messages.append(Message("assistant", None, (ToolCall(item.id, item.name, item.arguments),)))
                result = item.output if item.error is None else f"Error: {item.error}"
                messages.append(Message("tool", result or "(no output)", tool_call_id=item.id))
            case _:
                pass
    if not messages:
        raise InvalidRequest("input: there is nothing in it to answer.", param="input")
    return messages


def _add_call(messages: list[Message], call: ToolCall) -> None:
    if messages and messages[-1].role == "assistant" and (messages[-1].tool_calls or messages[-1].content):
        messages[-1] = msgspec.structs.replace(messages[-1], tool_calls=(*messages[-1].tool_calls, call))
    else:
        messages.append(Message("assistant", None, (call,)))


def _parse_content(content: str | list[JsonObject]) -> str | list[JsonObject]:
    """Content parts as chat completions have them; text alone as text."""
    if isinstance(content, str):
        return content
    parts: list[JsonObject] = []
    for part in content:
        match part:
            case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "refusal", "refusal": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "input_image", "image_url": str(url)}:
                parts.append({"type": "image_url", "image_url": {"url": url}})
            case _:
                raise InvalidRequest(f"input: content of type {part.get('type')!r} is not supported.", param="input")
    return "\n".join(p["text"] for p in parts) if all(p["type"] == "text" for p in parts) else parts
