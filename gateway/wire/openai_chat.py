"""Requests in OpenAI's chat completions format.

The gateway's own fields are in `x_gateway`.
"""

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import Approval, CodeMode, JsonObject, Parameters, ToolChoice, ToolSpec, TurnRequest
from gateway.wire.client_tools import FunctionBody, ToolBody, build_client_tool
from gateway.wire.openai.chat_messages import MessageBody, list_unknown_fields, to_messages
from gateway.wire.openai_refusals import IGNORED_IF_EMPTY, refuse_unsupported_chat
from gateway.wire.request_fields import describe_unknown_fields
from gateway.wire.request_model import ConversationId, ToolsetChoice
from gateway.wire.tool_offer import ToolOffer
from gateway.wire.turn_fields import AllowedToolChoice, CacheOptions
from gateway_runtime.requests.model import ItemList, RequestModel, limit_entries

_NO_WEB_SEARCH = "web_search_options was left out: searches are tools of connected MCP servers."


class NamedFunction(RequestModel):
    """Name of a tool."""

    name: str


class NamedChoice(RequestModel):
    """Choice of a tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(RequestModel):
    """Options of a stream. `include_obfuscation` is ignored."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GatewayOptions(RequestModel):
    """Options of the gateway, beyond OpenAI's format."""

    tools: Literal["all", "none"] | ItemList[str] | None = Field(
        default=None,
        description="Gateway tools that may be used. Default: all, and none where the request has tools of its own.",
    )
    conversation_id: ConversationId = Field(
        default=None, description='An id, your own or the gateway\'s, or "new". Default: no conversation.'
    )
    parent_turn_id: UUID | None = Field(
        default=None,
        description="Turn of the same conversation that this turn follows, which creates a branch. Default: the last.",
    )
    approval: Approval | None = Field(
        default=None,
        description="Tool calls that a person must approve. The policy of each MCP server applies as well. "
        "Default: never.",
    )
    on_disconnect: Literal["cancel", "continue"] | None = Field(default=None, description="Default: cancel.")
    cache: CacheOptions | None = None
    toolset: ToolsetChoice = None
    code: CodeMode | None = Field(
        default=None,
        description="Programs of the model that call tools: `auto`, `only` or `off`; see the native format. Default: "
        "that of the key, else `off`.",
    )
    webhook_url: str | None = Field(
        default=None, max_length=2_000, description="URL that is told of the turn's end and of its questions."
    )

    @property
    def tool_selection(self) -> str | list[str] | None:
        """Gateway tools of the request; a toolset alone asks for all."""
        return "all" if self.tools is None and self.toolset is not None else self.tools


class ChatCompletionRequest(RequestModel):
    """Request in OpenAI's format.

    Some fields are accepted and ignored, for example `service_tier`.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "What is 23*19?"}]}]},
    )

    messages: ItemList[MessageBody] = Field(min_length=1)
    model: str | None = Field(default=None, min_length=1, max_length=200)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(
        default=None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    stop: str | Annotated[ItemList[str], Field(max_length=4)] | None = None
    seed: int | None = None
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, ge=0, le=2)
    reasoning_effort: Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    tools: ItemList[ToolBody] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: JsonObject | None = None
    user: str | None = Field(default=None, max_length=256)
    metadata: Annotated[dict[str, str], Field(max_length=16), limit_entries(16)] | None = None
    store: bool | None = Field(default=None, description="If false, no text is stored.")
    x_gateway: GatewayOptions | None = None
    functions: Annotated[ItemList[FunctionBody], Field(max_length=128)] | None = Field(
        default=None, description="Older form of `tools`. A call is returned as `function_call`."
    )
    function_call: Literal["none", "auto"] | NamedFunction | None = Field(
        default=None, description="Older form of `tool_choice`."
    )
    n: Literal[1] | None = Field(default=None, description="Only one choice is supported.")
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0), limit_entries(0)] | None = None
    modalities: ItemList[Literal["text"]] | None = None
    prediction: object = None
    web_search_options: object = Field(
        default=None, description="Left out with a warning: searches are tools of MCP servers."
    )
    citation_options: object = None
    disable_tool_validation: object = None
    service_tier: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None
    verbosity: object = None
    reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    include_reasoning: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = cast(JsonObject, data)
        optional = _get_optional_names()
        fields = {name: value for name, value in fields.items() if name not in optional or value not in (None, [])}
        return refuse_unsupported_chat(fields)

    @model_validator(mode="after")
    def _validate_storage_options(self) -> "ChatCompletionRequest":
        if self.store is False and self.x_gateway is not None and self.x_gateway.cache is not None:
            raise ValueError("x_gateway.cache: the answer of a turn that is not stored cannot be cached")
        return self

    def to_turn_request(self, offer: ToolOffer, *, idempotency_key: str | None = None) -> TurnRequest:
        """Convert to the request that all wire formats share."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=stop or None,
            reasoning_effort=self.reasoning_effort,
            seed=self.seed,
            parallel_tool_calls=False if self.functions else self.parallel_tool_calls,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            reasoning_format=self.reasoning_format,
            include_reasoning=self.include_reasoning,
        )
        options = self.x_gateway or GatewayOptions()
        return TurnRequest(
            messages=tuple(to_messages(self.messages)),
            model=self.model or "",
            parameters=parameters,
            tools=offer.select(options.tool_selection, brings_tools=bool(self.tools or self.functions)),
            tool_choice=self._parse_tool_choice(),
            conversation_id=options.conversation_id,
            parent_turn_id=options.parent_turn_id,
            user_label=self.user,
            on_disconnect=options.on_disconnect or "cancel",
            idempotency_key=idempotency_key,
            approval=options.approval or "never",
            cache_ttl=options.cache.ttl if options.cache else None,
            store=self.store is not False,
            client_tools=self._list_client_tools(),
            response_format=None if (self.response_format or {}).get("type") == "text" else self.response_format,
            metadata=self.metadata or {},
            warnings=tuple(self._list_warnings()),
            webhook_url=options.webhook_url,
            code=options.code or "key",
            toolset=options.toolset,
        )

    @property
    def uses_functions(self) -> bool:
        """Whether calls are returned in the older form."""
        return bool(self.functions)

    def _list_warnings(self) -> Iterator[str]:
        if self.web_search_options is not None:
            yield _NO_WEB_SEARCH
        yield from describe_unknown_fields(list_unknown_fields(self.messages))

    def _list_client_tools(self) -> tuple[ToolSpec, ...]:
        if self.functions and self.tools:
            raise InvalidRequest("functions: send tools or functions, not both.", param="functions")
        functions = self.functions or [tool.function for tool in self.tools or ()]
        return tuple(build_client_tool(f.name, f.description, f.parameters) for f in functions)

    def _parse_tool_choice(self) -> ToolChoice | None:
        choice = self.tool_choice if self.tool_choice is not None else self.function_call
        if isinstance(choice, NamedFunction):
            return {"type": "function", "function": choice.model_dump()}
        if isinstance(choice, AllowedToolChoice):
            return choice.to_tool_choice()
        return choice.model_dump() if isinstance(choice, NamedChoice) else choice


@cache
def _get_optional_names() -> frozenset[str]:
    """Names whose null or empty list is the same as no value."""
    fields = ChatCompletionRequest.model_fields
    return frozenset(name for name, field in fields.items() if not field.is_required()) | IGNORED_IF_EMPTY
