"""Requests of OpenAI's Responses API.

Gateway tools appear as MCP tools of the gateway's servers.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.common.urls import is_same_endpoint
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import CodeMode, JsonObject, Parameters, ToolChoice, ToolSpec, TurnRequest
from gateway.wire.client_tools import build_client_tool
from gateway.wire.openai_refusals import refuse_unsupported_response
from gateway.wire.openai_response_ids import parse_conversation_id, parse_response_id
from gateway.wire.openai_response_input import (
    AdditionalToolsItem,
    ApprovalItem,
    HostedItem,
    IgnoredItem,
    InputItem,
    McpCallItem,
    ReferenceItem,
    parse_items,
    to_named_messages,
)
from gateway.wire.openai_response_tools import (
    AllowedToolsChoice,
    FunctionChoice,
    FunctionTool,
    IgnoredTool,
    McpChoice,
    McpTool,
    Tool,
    list_allowed_names,
    matches_filter,
    needs_approval,
)
from gateway.wire.request_model import ToolsetChoice
from gateway.wire.tool_offer import ToolOffer
from gateway_runtime.requests.model import ItemList, RequestModel, limit_entries


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


class ResponseGatewayOptions(RequestModel):
    """Options of the gateway, beyond OpenAI's format."""

    tools: Literal["all", "none"] | ItemList[str] | None = Field(
        default=None,
        description="Gateway tools that may be used. Default: all, and none where the request has tools of its own.",
    )
    toolset: ToolsetChoice = None
    code: CodeMode | None = Field(
        default=None,
        description="Programs of the model that call tools: `auto`, `only` or `off`; see the native format. Default: "
        "that of the key, else `off`.",
    )
    webhook_url: str | None = Field(
        default=None, max_length=2_000, description="URL that is told of the turn's end and of its questions."
    )


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
    client_metadata: object = None
    tools: ItemList[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | McpChoice | AllowedToolsChoice | None = None
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
    prompt_cache_options: object = None
    prompt_cache_retention: object = None
    top_logprobs: Literal[0] | None = None
    x_gateway: ResponseGatewayOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        return refuse_unsupported_response(data)

    def find_approvals(self) -> "ApprovalAnswers | None":
        """Return the answers to approval requests at the input's end.

        Answers before other items are history. Clients without `previous_response_id` repeat the whole input.

        Raises:
            InvalidRequest: the request also has other input behind `previous_response_id`, or names no turn.
        """
        items = self.input if isinstance(self.input, list) else []
        if self.previous_response_id is not None:
            answers = [item for item in items if isinstance(item, ApprovalItem)]
            if answers and not all(isinstance(item, ApprovalItem | IgnoredItem | McpCallItem) for item in items):
                raise InvalidRequest("input: approval responses cannot be combined with other items.", param="input")
            turn = parse_response_id(self.previous_response_id, "previous_response_id") if answers else None
        else:
            answers = _list_last_answers(items)
            last = answers[-1].parsed_id if answers else None
            if last is not None and last.turn_id is None:
                message = "previous_response_id: required with approval responses; the id of the response that asked."
                raise InvalidRequest(message, param="previous_response_id")
            answers = [a for a in answers if last and a.parsed_id[1:] == last[1:]]
            turn = (last.turn_id, last.part) if last and last.turn_id else None
        if turn is None:
            return None
        return ApprovalAnswers(*turn, {answer.parsed_id.input_id: answer.approve for answer in answers})

    @property
    def references(self) -> dict[str, int]:
        """Positions of references to items, by the items' ids."""
        items = self.input if isinstance(self.input, list) else []
        return {item.id: n for n, item in enumerate(items) if isinstance(item, ReferenceItem)}

    def replace_references(self, found: dict[str, JsonObject]) -> "ResponseRequest":
        """Return the request with the items in place of their references."""
        items = self.input if isinstance(self.input, list) else []
        replaced = [parse_items([found[i.id]])[0] if isinstance(i, ReferenceItem) else i for i in items]
        return self.model_copy(update={"input": replaced})

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

        `specs` are the gateway's tools, `urls` the URLs of its servers by name.

        Raises:
            InvalidRequest: the request names a server that is not configured, or contradicts itself.
        """
        if self.background and self.store is False:
            raise InvalidRequest("background: a background response must be stored.", param="background")
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_output_tokens,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            parallel_tool_calls=self.parallel_tool_calls,
        )
        selected, approve = self._select_tools(offer, specs, urls)
        parent = (
            parse_response_id(self.previous_response_id, "previous_response_id")[0]
            if self.previous_response_id
            else None
        )
        conversation = self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation
        if conversation is not None and parent is not None:
            message = "conversation: send it or previous_response_id, not both."
            raise InvalidRequest(message, param="conversation")
        functions = [tool for tool in self._list_tools() if isinstance(tool, FunctionTool)]
        messages, paths = zip(*to_named_messages(self.input), strict=True)
        return TurnRequest(
            messages=messages,
            message_paths=paths,
            model=self.model or "",
            parameters=parameters,
            tools=selected,
            tool_choice=self._parse_tool_choice(specs),
            conversation_id=None if conversation is None else parse_conversation_id(conversation),
            parent_turn_id=parent,
            system=self.instructions,
            user_label=self.user,
            on_disconnect="continue" if self.background else "cancel",
            idempotency_key=idempotency_key,
            store=self.store is not False,
            client_tools=tuple(build_client_tool(tool.name, tool.description, tool.parameters) for tool in functions),
            response_format=self._parse_response_format(),
            metadata=self.metadata or {},
            webhook_url=self.x_gateway.webhook_url if self.x_gateway else None,
            code=(self.x_gateway and self.x_gateway.code) or "key",
            toolset=self.toolset,
            approve=approve,
            warnings=tuple(self._list_warnings()),
            echo=self._build_echo(specs if selected is None else [spec for spec in specs if spec.name in selected]),
        )

    def _list_tools(self) -> Iterator[Tool]:
        yield from self.tools or ()
        for item in self.input if isinstance(self.input, list) else ():
            if isinstance(item, AdditionalToolsItem):
                yield from item.tools

    def _list_warnings(self) -> Iterator[str]:
        if ignored := sorted({tool.type for tool in self._list_tools() if isinstance(tool, IgnoredTool)}):
            yield f"Tools of these types are not supported, and were left out: {', '.join(ignored)}."
        if any(isinstance(tool, McpTool) and (tool.headers or tool.authorization) for tool in self._list_tools()):
            yield "The headers and authorization of MCP tools were left out: the gateway has its own credentials."
        items = self.input if isinstance(self.input, list) else []
        if hosted := sorted({item.type for item in items if isinstance(item, HostedItem)}):
            yield f"Items of these types are not supported, and were left out: {', '.join(hosted)}."

    def _select_tools(
        self, offer: ToolOffer, specs: tuple[ToolSpec, ...], urls: dict[str, str | None]
    ) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        """Return the names of allowed gateway tools, and names that need approval.

        None as allowed tools: all.
        """
        named: list[str] | None = None
        approve: list[str] = []
        for index, tool in enumerate(self.tools or ()):
            if not isinstance(tool, McpTool):
                continue
            named = [] if named is None else named
            server = _find_server(tool, urls, f"tools.{index}")
            matching = [spec for spec in specs if spec.server == server and matches_filter(spec, tool.allowed_tools)]
            named += [spec.name for spec in matching]
            approve += [spec.name for spec in matching if needs_approval(spec, tool.require_approval)]
        options = self.x_gateway or ResponseGatewayOptions()
        body = named if options.tools is None else options.tools
        body = "all" if body is None and options.toolset is not None else body
        return offer.select(body, brings_tools=any(True for _ in self._list_tools())), tuple(approve)

    def _parse_tool_choice(self, specs: tuple[ToolSpec, ...]) -> ToolChoice | None:
        choice = self.tool_choice
        if choice is None or isinstance(choice, str):
            return choice
        if isinstance(choice, AllowedToolsChoice):
            return {"type": choice.type, "mode": choice.mode, "names": list_allowed_names(choice, specs)}
        name = choice.name
        if isinstance(choice, McpChoice):
            label, tool = choice.server_label, choice.name
            if tool is None:
                names = [spec.name for spec in specs if spec.server == label]
                return {"type": "allowed_tools", "mode": "required", "names": names}
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

    def _build_echo(self, specs: Iterable[ToolSpec]) -> JsonObject:
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
        return {"response": echo, "servers": servers} | ({"toolset": self.toolset} if self.toolset else {})


class ApprovalAnswers(NamedTuple):
    """Answers to the approval requests of a turn's part, by question."""

    turn_id: UUID
    part: int
    decisions: dict[UUID, bool]


def _list_last_answers(items: list[InputItem]) -> list[ApprovalItem]:
    """List the approval responses behind the last item of another type."""
    answers: list[ApprovalItem] = []
    for item in reversed(items):
        if isinstance(item, ApprovalItem):
            answers.insert(0, item)
        elif not isinstance(item, IgnoredItem | McpCallItem):
            break
    return answers


def _find_server(tool: McpTool, urls: dict[str, str | None], path: str) -> str:
    """Return the name of the server that a tool selects.

    Raises:
        InvalidRequest: the administrator has not configured it.
    """
    url = tool.server_url
    if tool.server_label in urls:
        if url is not None and not is_same_endpoint(url, urls[tool.server_label]):
            message = f"{path}.server_url: only the administrator configures servers; omit the URL."
            raise InvalidRequest(message, param=f"{path}.server_url")
        return tool.server_label
    named = next((name for name, known in urls.items() if is_same_endpoint(url, known)), None)
    if named is None:
        configured = ", ".join(sorted(urls)) or "none"
        message = f"{path}.server_label: {tool.server_label!r} is not configured; configured: {configured}."
        raise InvalidRequest(message, param=f"{path}.server_label")
    return named
