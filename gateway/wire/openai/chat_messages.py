"""Messages of OpenAI's chat completions format.

Clients send answers back as their SDK holds them: with fields that the SDK or a proxy in between has added.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Message, Role, ToolCall
from gateway_runtime.requests.model import ItemList, RequestModel

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class FunctionCallBody(BaseModel):
    """Function that a call names, with its arguments as JSON text.

    Additional fields, such as parsed arguments, are ignored.
    """

    name: str = Field(max_length=128)
    arguments: str | None = None


class ToolCallBody(BaseModel):
    """Tool call of an earlier answer.

    Send it back as it came: the model's server may need `extra_content`. Additional fields are ignored.
    """

    id: str = Field(min_length=1, max_length=128)
    type: Literal["function"] | None = None
    function: FunctionCallBody
    extra_content: object = None

    def to_tool_call(self) -> ToolCall:
        function = self.function
        return ToolCall(self.id, function.name, _get_arguments(function), extra_content=self.extra_content)


class MessageBody(RequestModel):
    """Message of a conversation. All fields of an answer's message are accepted.

    The role `function` and `function_call` are the older form of `tool` and `tool_calls`. Fields that SDKs and proxies
    add to an answer, such as `parsed`, are accepted and change nothing; others are ignored with a warning.
    """

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | ItemList[JsonObject] | None = None
    name: str | None = Field(default=None, max_length=128)
    tool_calls: ItemList[ToolCallBody] | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)
    refusal: str | None = None
    annotations: Any = None
    audio: Any = None
    function_call: FunctionCallBody | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    executed_tools: Any = None
    parsed: Any = None
    provider_specific_fields: Any = None
    cache_control: Any = None
    id: Any = None
    metadata: Any = None
    parsed_arguments: Any = None
    additional_kwargs: Any = None
    response_metadata: Any = None
    usage_metadata: Any = None
    extra_content: Any = None
    provider_metadata: Any = None
    citations: Any = None
    images: Any = None
    channel: Any = None
    status: Any = None
    type: Any = None
    object: Any = None
    created_at: Any = None
    timestamp: Any = None
    model: Any = None
    usage: Any = None
    finish_reason: Any = None
    logprobs: Any = None

    @model_validator(mode="after")
    def _validate_content(self) -> "MessageBody":
        if self.content is None and not self.tool_calls and not self.refusal and self.function_call is None:
            raise ValueError("content: must not be null")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("tool_call_id: required for the role tool")
        return self


def list_unknown_fields(bodies: Sequence[MessageBody]) -> list[str]:
    """List the names of unknown fields that are not empty."""
    extra_fields = (field for body in bodies for field in (body.model_extra or {}).items())
    return sorted({name for name, value in extra_fields if value not in (None, [], {})})


def to_messages(bodies: Sequence[MessageBody]) -> Iterator[Message]:
    """Convert messages.

    The result of a function answers the last call of that name.

    Raises:
        InvalidRequest: a result of a function has no call.
    """
    open_calls: dict[str, str] = {}
    for number, body in enumerate(bodies):
        calls = tuple(call.to_tool_call() for call in body.tool_calls or ())
        call_id, name = body.tool_call_id, body.name
        if body.function_call is not None:
            call = ToolCall(f"call_function_{number}", body.function_call.name, _get_arguments(body.function_call))
            open_calls[call.name] = call.id
            calls = (*calls, call)
        if body.role == "function":
            call_id = open_calls.pop(name or "", None)
            if call_id is None:
                message = f"messages.{number}.name: no function_call of this name precedes the result."
                raise InvalidRequest(message, param=f"messages.{number}.name")
        yield Message(_ROLES[body.role], body.content, calls, call_id, name, body.refusal or None)


def _get_arguments(call: FunctionCallBody) -> str:
    return "{}" if call.arguments is None else call.arguments
