"""Inputs of AG-UI runs.

The models are the gateway's own, which accept content parts and roles of later versions of the protocol.
"""

from collections.abc import Iterator
from typing import Any, Literal, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Message, Parameters, ToolCall, TurnRequest
from gateway.wire.front_ends.sent_chat import (
    SentAnswer,
    SentChat,
    SentMessage,
    parse_calling_turn,
    parse_message_id,
    parse_uuid,
)
from gateway.wire.front_ends.tools import read_tools
from gateway.wire.openai_chat import GatewayOptions
from gateway.wire.tool_offer import ToolOffer
from gateway_runtime.requests.model import ItemList

_MAX_SHOWN_LENGTH = 80
_encode = msgspec.json.Encoder().encode


class _RunPart(BaseModel):
    """Part of a run's input.

    Its fields are in camel case; further ones are ignored.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class RunFunctionBody(_RunPart):
    """Function that a call names, with its arguments as JSON text."""

    name: str = Field(max_length=128)
    arguments: str = "{}"


class RunToolCallBody(_RunPart):
    """Tool call of an earlier answer."""

    id: str = Field(min_length=1, max_length=128)
    function: RunFunctionBody


class RunMessageBody(_RunPart):
    """Message of the thread.

    Roles that the model does not know are skipped.
    """

    id: str = Field(default="", max_length=256)
    role: str = Field(max_length=64)
    content: object = None
    tool_calls: ItemList[RunToolCallBody] | None = None
    tool_call_id: str | None = Field(default=None, max_length=128)
    error: str | None = None


class ContextBody(_RunPart):
    """Fact about the application, for the model."""

    description: str = ""
    value: str = ""


class ResumeEntryBody(_RunPart):
    """Answer to an interrupt.

    `payload` has the content that the interrupt's schema describes; of an approval, `approved`.
    """

    interrupt_id: str = Field(max_length=64)
    status: Literal["resolved", "cancelled"]
    payload: object = None


class ForwardedOptions(BaseModel):
    """Options of the gateway in `forwardedProps`; others are ignored."""

    model: str | None = Field(default=None, min_length=1, max_length=200)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    x_gateway: GatewayOptions | None = None


class RunInput(_RunPart):
    """Input of a run: thread, tools and answers to interrupts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "threadId": "sums",
                    "runId": "run-1",
                    "messages": [{"id": "1", "role": "user", "content": "What is 23*19?"}],
                }
            ]
        },
    )

    thread_id: str = Field(min_length=1, max_length=1_024, description="Id of the thread: your conversation.")
    run_id: str = Field(min_length=1, max_length=1_024)
    protocol_version: str | None = Field(default=None, max_length=64, description="Clients before 1.0 send none.")
    messages: ItemList[RunMessageBody] = Field(description="The whole thread, oldest first.")
    tools: ItemList[JsonObject] | None = Field(default=None, max_length=128, description="Tools of the front end.")
    context: ItemList[ContextBody] | None = Field(default=None, max_length=1_000)
    state: object = None
    forwarded_props: Any = Field(default=None, description="`model`, `max_tokens`, `x_gateway` and the like.")
    resume: ItemList[ResumeEntryBody] | None = Field(default=None, max_length=64)

    def read_chat(self, warnings: dict[str, None]) -> SentChat:
        """Read the thread, and the answers to interrupts.

        Raises:
            InvalidRequest: an answer names no interrupt.
        """
        messages = (self._read_thread_message(body, number, warnings) for number, body in enumerate(self.messages))
        answers = tuple(_read_resume_entry(entry, number) for number, entry in enumerate(self.resume or ()))
        return SentChat(tuple(messages), answers)

    def to_turn_request(self, offer: ToolOffer, *, idempotency_key: str | None) -> TurnRequest:
        """Convert to the request that all wire formats share, without messages.

        Raises:
            InvalidRequest: a tool or an option is not valid.
        """
        forwarded = self.forwarded_options
        options = forwarded.x_gateway or GatewayOptions()
        return TurnRequest(
            messages=(),
            model=forwarded.model or "",
            parameters=Parameters(
                temperature=forwarded.temperature,
                max_tokens=forwarded.max_tokens,
                reasoning_effort=forwarded.reasoning_effort,
            ),
            tools=offer.select(options.tool_selection, brings_tools=bool(self.tools)),
            client_tools=read_tools(self.tools or []),
            conversation_id=options.conversation_id or self.thread_id,
            parent_turn_id=options.parent_turn_id,
            system=self._format_context(),
            on_disconnect=options.on_disconnect or "cancel",
            approval=options.approval or "never",
            cache_ttl=options.cache.ttl if options.cache else None,
            webhook_url=options.webhook_url,
            code=options.code or "key",
            toolset=options.toolset,
            idempotency_key=idempotency_key,
            drop_unsupported=True,
        )

    @property
    def forwarded_options(self) -> ForwardedOptions:
        """Options of the gateway.

        Raises:
            InvalidRequest: one is not valid.
        """
        props: object = self.forwarded_props
        forwarded = cast(JsonObject, props) if isinstance(props, dict) else {}
        known = {name: value for name, value in forwarded.items() if name in ForwardedOptions.model_fields}
        try:
            return ForwardedOptions.model_validate(known)
        except ValidationError as error:
            path = ".".join(map(str, ("forwardedProps", *error.errors()[0]["loc"])))[:_MAX_SHOWN_LENGTH]
            raise InvalidRequest(f"{path}: {error.errors()[0]['msg']}", param=path) from None

    def _read_thread_message(self, body: RunMessageBody, number: int, warnings: dict[str, None]) -> SentMessage:
        path = f"messages.{number}"
        match body.role:
            case "user":
                return SentMessage("user", path, lambda: [Message("user", _read_content(body.content, warnings))])
            case "system" | "developer":
                return SentMessage("system", path, lambda: [Message("system", _read_text(body.content))])
            case "tool":
                return SentMessage("tool", path, lambda: _read_result(body), parse_message_id(body.id))
            case "assistant":
                return SentMessage("assistant", path, lambda: _read_call_message(body), _get_turn_id(body))
            case _:  # reasoning, activities, and roles of later versions
                return SentMessage("assistant", path, tuple, parse_message_id(body.id))

    def _format_context(self) -> str | None:
        """Format the context and the application's state for the model."""
        lines = [f"{entry.description}: {entry.value}" for entry in self.context or ()]
        if self.state not in (None, {}, [], ""):
            lines.append(f"State of the application: {_encode(self.state).decode()}")
        return "\n".join(["Context:", *lines]) if lines else None


def _read_resume_entry(entry: ResumeEntryBody, number: int) -> SentAnswer:
    """Read an answer.

    `approved` false in the payload declines an approval. `editedArgs` are another name of `arguments`.
    """
    input_id = parse_uuid(entry.interrupt_id)
    if input_id is None:
        path = f"resume.{number}.interruptId"
        raise InvalidRequest(f"{path}: there is no such interrupt.", param=path)
    payload = entry.payload
    if entry.status == "cancelled" or payload is False:
        return SentAnswer(input_id, "decline")
    content = dict(cast(JsonObject, payload)) if isinstance(payload, dict) else {}
    if content.pop("approved", True) is False:
        return SentAnswer(input_id, "decline")
    if "editedArgs" in content:
        content["arguments"] = content.pop("editedArgs")
    return SentAnswer(input_id, "accept", content)


def _get_turn_id(body: RunMessageBody) -> Any:
    calling_turns = (parse_calling_turn(call.id) for call in body.tool_calls or ())
    return parse_message_id(body.id) or next((turn_id for turn_id in calling_turns if turn_id is not None), None)


def _read_call_message(body: RunMessageBody) -> Iterator[Message]:
    text = _read_text(body.content)
    calls = tuple(ToolCall(call.id, call.function.name, call.function.arguments) for call in body.tool_calls or ())
    if text or calls:
        yield Message("assistant", text or None, calls)


def _read_result(body: RunMessageBody) -> Iterator[Message]:
    if body.tool_call_id is not None:
        text = f"Error: {body.error}" if body.error else _read_text(body.content) or "(no output)"
        yield Message("tool", text, tool_call_id=body.tool_call_id)


def _read_text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = cast(list[object], content) if isinstance(content, list) else []
    texts = (cast(JsonObject, part).get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _read_content(content: object, warnings: dict[str, None]) -> str | list[JsonObject]:
    """Read a user's texts and images.

    Of other parts, the model gets the type.
    """
    if not isinstance(content, list):
        return _read_text(content)
    parts = [
        _read_part(cast(JsonObject, part), warnings) for part in cast(list[object], content) if isinstance(part, dict)
    ]
    is_text = all(part["type"] == "text" for part in parts)
    return "\n".join(part["text"] for part in parts) if is_text else parts


def _read_part(part: JsonObject, warnings: dict[str, None]) -> JsonObject:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image", "source": {"type": "data", "value": str(data), "mimeType": str(media_type)}}:
            return _build_image(f"data:{media_type};base64,{data}")
        case {"type": "image", "source": {"type": "url", "value": str(url)}} | {"type": "image", "url": str(url)}:
            return _build_image(url)
        case {"type": "binary", "mimeType": str(media_type), "data": str(data)} if media_type.startswith("image/"):
            return _build_image(f"data:{media_type};base64,{data}")
        case {"type": "binary", "mimeType": str(media_type), "url": str(url)} if media_type.startswith("image/"):
            return _build_image(url)
        case _:
            kind = str(part.get("type"))[:_MAX_SHOWN_LENGTH]
            warnings[f"Content of the type {kind!r} was left out: it cannot be read here."] = None
            return {"type": "text", "text": f"[content of the type {kind}, which was not sent to you]"}


def _build_image(url: str) -> JsonObject:
    return {"type": "image_url", "image_url": {"url": url}}
