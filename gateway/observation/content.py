"""Texts in spans, which only OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT adds.

They are redacted by the rules of what is stored, and cut.
"""

from gateway.domain.messages import JsonObject, Message, ToolCall, Usage
from gateway.observation import names as n
from gateway.ports.model import ModelCall, ModelSink
from gateway_runtime.redaction.redactor import Redactor
from gateway_runtime.telemetry.content import encode_content


class CapturingSink(ModelSink):
    """Passes a model's output on, and keeps it for the span."""

    def __init__(self, sink: ModelSink) -> None:
        self._sink = sink
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self.capacity = sink.capacity

    def on_accepted(self) -> None:
        self._sink.on_accepted()

    def on_text(self, text: str) -> None:
        self._texts.append(text)
        self._sink.on_text(text)

    def on_reasoning(self, text: str) -> None:
        self._sink.on_reasoning(text)

    def on_refusal(self, text: str) -> None:
        self._texts.append(text)
        self._sink.on_refusal(text)

    def on_tool_call(self, call: ToolCall) -> None:
        self._calls.append(call)
        self._sink.on_tool_call(call)

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        self._sink.on_server_tool_call(call, output)

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        if discard:
            self._texts.clear()
        self._calls.clear()
        self._sink.on_retry(reason, attempt, discard=discard, model=model)

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self._sink.record_failed_usage(usage, cost_usd)

    def describe_output(self, finish_reason: str, redactor: Redactor) -> dict[str, str]:
        """Return the attribute with the output."""
        message = Message(role="assistant", content="".join(self._texts), tool_calls=tuple(self._calls))
        output = _describe_message(message, redactor) | {"finish_reason": finish_reason}
        return {n.OUTPUT_MESSAGES: encode_content([output])}


def describe_messages(call: ModelCall, redactor: Redactor) -> dict[str, str]:
    """Return the attributes with a call's messages, by the conventions of GenAI."""
    system = [message.text for message in call.messages if message.role == "system"]
    others = [message for message in call.messages if message.role != "system"]
    attributes = {n.INPUT_MESSAGES: encode_content([_describe_message(message, redactor) for message in others])}
    if system:
        parts = [{"type": "text", "content": redactor.redact_text(text)} for text in system]
        attributes[n.INSTRUCTIONS] = encode_content(parts)
    return attributes


def _describe_message(message: Message, redactor: Redactor) -> JsonObject:
    parts: list[JsonObject] = []
    if message.tool_call_id is not None:
        parts.append(
            {"type": "tool_call_response", "id": message.tool_call_id, "response": redactor.redact_text(message.text)}
        )
    elif message.text:
        parts.append({"type": "text", "content": redactor.redact_text(message.text)})
    for call in message.tool_calls:
        arguments = redactor.redact_text(call.arguments)
        parts.append({"type": "tool_call", "id": call.id, "name": call.name, "arguments": arguments})
    return {"role": message.role, "parts": parts}
