"""Requests of the AI SDK's chat transport."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.domain.messages import JsonObject, Parameters, TurnRequest
from gateway.wire.front_ends.sent_chat import SentAnswer, SentChat
from gateway.wire.front_ends.tools import read_tools
from gateway.wire.openai_chat import GatewayOptions
from gateway.wire.tool_offer import ToolOffer
from gateway.wire.turn_fields import SystemText
from gateway.wire.ui_messages.parts import get_turn_id, list_approvals, read_ui_message
from gateway_runtime.requests.model import ItemList, RequestModel, limit_entries

_MAX_WARNED_FIELDS = 10
_MAX_SHOWN_LENGTH = 80
_MAX_TOOLS = 128
_IGNORED_FIELDS = {"requestMetadata", "config", "callSettings", "unstable_assistantMessageId", "runConfig", "state"}


class UIMessageBody(BaseModel):
    """Message of the chat, as the AI SDK holds it.

    Parts of unknown types are accepted and skipped.
    """

    id: str = Field(default="", max_length=256)
    role: Literal["system", "user", "assistant"]
    parts: ItemList[Any]
    metadata: object = None


class InputAnswerBody(RequestModel):
    """Answer to a question of a `data-input` part."""

    input_id: UUID
    action: Literal["accept", "decline", "cancel"] = "accept"
    content: JsonObject | None = None


class UIMessagesRequest(RequestModel):
    """Chat of the AI SDK, with what its transport adds.

    Fields that are not known are ignored, with a warning.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {"id": "sums", "messages": [{"role": "user", "parts": [{"type": "text", "text": "What is 23*19?"}]}]}
            ]
        },
    )

    id: str | None = Field(
        default=None, max_length=1_024, description="Id of the chat, which names your conversation. Default: none."
    )
    messages: ItemList[UIMessageBody] | None = Field(default=None, description="The whole chat, oldest first.")
    message: UIMessageBody | None = Field(
        default=None, description="Only the last message, of transports that do not send the whole chat."
    )
    trigger: Literal["submit-message", "regenerate-message"] | None = None
    message_id: str | None = Field(default=None, alias="messageId", max_length=256)
    model: str | None = Field(default=None, min_length=1, max_length=200, description="Default: GROQ_DEFAULT_MODEL.")
    system: SystemText = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)
    reasoning_effort: Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    tools: (
        Annotated[ItemList[JsonObject], Field(max_length=_MAX_TOOLS)]
        | Annotated[dict[str, JsonObject], limit_entries(_MAX_TOOLS)]
        | None
    ) = Field(default=None, description="Tools that the front end runs, in OpenAI's shape or by name.")
    answers: ItemList[InputAnswerBody] | None = Field(
        default=None, max_length=64, description="Answers to questions that the last turn waits for."
    )
    x_gateway: GatewayOptions | None = None

    @model_validator(mode="after")
    def _validate_messages(self) -> Self:
        if not self.messages and self.message is None:
            raise ValueError("messages: must not be empty")
        return self

    def read_chat(self, warnings: dict[str, None]) -> SentChat:
        """Read the messages, and the decisions of the last answer."""
        bodies = [_to_object(body) for body in self._message_bodies]
        sent = tuple(read_ui_message(body, f"messages.{number}", warnings) for number, body in enumerate(bodies))
        answers = [SentAnswer(answer.input_id, answer.action, answer.content) for answer in self.answers or ()]
        answer = next((body for body in reversed(bodies) if body["role"] == "assistant"), None)
        for input_id, approved in list_approvals(answer) if answer else ():
            answers.append(SentAnswer(input_id, "accept" if approved else "decline", {} if approved else None))
        return SentChat(sent, tuple(answers), is_rewritten=self._is_rewritten)

    @property
    def continued_message_id(self) -> str | None:
        """Id of the message that the new answer continues."""
        last = self._message_bodies[-1]
        return last.id or None if last.role == "assistant" else None

    @property
    def continued_turn_id(self) -> UUID | None:
        """The last turn of the message that the answer continues."""
        last = self._message_bodies[-1]
        return get_turn_id(_to_object(last)) if last.role == "assistant" else None

    def to_turn_request(self, offer: ToolOffer, *, idempotency_key: str | None) -> TurnRequest:
        """Convert to the request that all wire formats share, without messages.

        Raises:
            InvalidRequest: a tool's definition is not valid.
        """
        options = self.x_gateway or GatewayOptions()
        return TurnRequest(
            messages=(),
            model=self.model or "",
            parameters=Parameters(
                temperature=self.temperature, max_tokens=self.max_tokens, reasoning_effort=self.reasoning_effort
            ),
            tools=offer.select(options.tool_selection, brings_tools=bool(self.tools)),
            client_tools=read_tools(self.tools or []),
            conversation_id=options.conversation_id or self.id or None,
            parent_turn_id=options.parent_turn_id,
            system=self.system,
            on_disconnect=options.on_disconnect or "cancel",
            approval=options.approval or "never",
            cache_ttl=options.cache.ttl if options.cache else None,
            webhook_url=options.webhook_url,
            code=options.code or "key",
            toolset=options.toolset,
            warnings=tuple(self._list_warnings()),
            idempotency_key=idempotency_key,
            drop_unsupported=True,
        )

    @property
    def _message_bodies(self) -> list[UIMessageBody]:
        messages = self.messages or []
        return messages if self.message is None else [*messages, self.message]

    @property
    def _is_rewritten(self) -> bool:
        """Whether the answer or the message that `messageId` names is replaced."""
        if self.trigger == "regenerate-message":
            return True
        edited = next((body for body in self._message_bodies if body.id and body.id == self.message_id), None)
        return edited is not None and edited.role == "user"

    def _list_warnings(self) -> Iterator[str]:
        unknown = sorted(set(self.model_extra or ()) - _IGNORED_FIELDS)[:_MAX_WARNED_FIELDS]
        if unknown:
            names = ", ".join(name[:_MAX_SHOWN_LENGTH] for name in unknown)
            yield f"These fields are not known, and were ignored: {names}."


def _to_object(body: UIMessageBody) -> JsonObject:
    return {"id": body.id, "role": body.role, "parts": body.parts, "metadata": body.metadata}
