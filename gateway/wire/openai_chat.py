"""Requests in OpenAI's chat completions format.

The gateway's own fields are in `x_gateway`.
"""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from gateway.domain.messages import (
    Approval,
    JsonObject,
    Message,
    Parameters,
    Role,
    ToolCall,
    TurnRequest,
)
from gateway.wire.client_tools import ToolBody
from gateway.wire.openai_refusals import refuse_unsupported_chat
from gateway.wire.request_model import ConversationId, ItemList, RequestModel, limit_entries
from gateway.wire.turn_fields import CacheOptions


class FunctionCallBody(RequestModel):
    """Function that a tool call names, with its arguments as JSON text."""

    name: str = Field(max_length=128)
    arguments: str = "{}"


class ToolCallBody(BaseModel):
    """Tool call of an earlier answer.

    Send it back as it came: the model's server may need `extra_content`. Additional fields are ignored.
    """

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] = "function"
    function: FunctionCallBody
    extra_content: object = None

    def to_tool_call(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments, extra_content=self.extra_content)


class MessageBody(RequestModel):
    """Message of a conversation. All fields of an answer's message are accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | ItemList[JsonObject] | None = None
    name: str | None = Field(default=None, max_length=128)
    tool_calls: ItemList[ToolCallBody] | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)
    refusal: str | None = None
    annotations: object = None
    audio: object = None
    function_call: None = None
    reasoning: object = None
    reasoning_content: object = None
    executed_tools: object = None

    @model_validator(mode="after")
    def _validate_content(self) -> "MessageBody":
        if self.content is None and not self.tool_calls and not self.refusal:
            raise ValueError("content: must not be null")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("tool_call_id: required for the role tool")
        return self

    def to_message(self) -> Message:
        calls = tuple(call.to_tool_call() for call in self.tool_calls or ())
        role: Role = "system" if self.role == "developer" else self.role
        return Message(role, self.content, calls, self.tool_call_id, self.name, self.refusal or None)


class NamedFunction(RequestModel):
    """Name of a tool."""

    name: str


class NamedChoice(RequestModel):
    """Choice of a tool that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(RequestModel):
    """Options of a stream. `include_obfuscation` is ignored."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class GatewayOptions(RequestModel):
    """Options of the gateway, beyond OpenAI's format."""

    tools: Literal["all", "none"] | ItemList[str] = Field(default="all", description="Gateway tools that may be used.")
    conversation_id: ConversationId = Field(
        default=None, description='An id, your own or the gateway\'s, or "new". Default: no conversation.'
    )
    parent_turn_id: UUID | None = Field(
        default=None,
        description="Turn of the same conversation that this turn follows, which creates a branch. Default: the last.",
    )
    approval: Approval = Field(
        default="never",
        description="Tool calls that a person must approve. The policy of each MCP server applies as well.",
    )
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    cache: CacheOptions | None = None


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
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: JsonObject | None = None
    user: str | None = Field(default=None, max_length=256)
    metadata: Annotated[dict[str, str], Field(max_length=16), limit_entries(16)] | None = None
    store: bool | None = Field(default=None, description="If false, no text is stored.")
    x_gateway: GatewayOptions = GatewayOptions()
    n: Literal[1] | None = Field(default=None, description="Only one choice is supported.")
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0), limit_entries(0)] | None = None
    modalities: ItemList[Literal["text"]] | None = None
    service_tier: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_retention: object = None
    verbosity: object = None
    reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    include_reasoning: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        return refuse_unsupported_chat(data)

    @model_validator(mode="after")
    def _validate_storage_options(self) -> "ChatCompletionRequest":
        if self.store is False and self.x_gateway.cache is not None:
            raise ValueError("x_gateway.cache: the answer of a turn that is not stored cannot be cached")
        return self

    def to_turn_request(self, *, tools: str | None = None, idempotency_key: str | None = None) -> TurnRequest:
        """Convert to the request that all wire formats share.

        `tools` is the header X-Gateway-Tools, which overrides the body.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        parameters = Parameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=stop or None,
            reasoning_effort=self.reasoning_effort,
            seed=self.seed,
            parallel_tool_calls=self.parallel_tool_calls,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            reasoning_format=self.reasoning_format,
            include_reasoning=self.include_reasoning,
        )
        choice, options = self.tool_choice, self.x_gateway
        return TurnRequest(
            messages=tuple(message.to_message() for message in self.messages),
            model=self.model or "",
            parameters=parameters,
            tools=parse_tool_selection(tools if tools is not None else options.tools),
            tool_choice=choice.model_dump() if isinstance(choice, NamedChoice) else choice,
            conversation_id=options.conversation_id,
            parent_turn_id=options.parent_turn_id,
            user_label=self.user,
            on_disconnect=options.on_disconnect,
            idempotency_key=idempotency_key,
            approval=options.approval,
            cache_ttl=options.cache.ttl if options.cache else None,
            store=self.store is not False,
            client_tools=tuple(tool.to_tool_spec() for tool in self.tools or ()),
            response_format=None if (self.response_format or {}).get("type") == "text" else self.response_format,
            metadata=self.metadata or {},
        )


def parse_tool_selection(selection: str | list[str]) -> tuple[str, ...] | None:
    """Return the names of the allowed gateway tools; None: all."""
    if isinstance(selection, str):
        if selection.strip().lower() == "all":
            return None
        selection = [] if selection.strip().lower() == "none" else [name.strip() for name in selection.split(",")]
    return tuple(dict.fromkeys(name for name in selection if name))
