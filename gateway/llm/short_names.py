"""Names of tools that every model's server accepts.

Anthropic permits 128 characters, as clients with MCP servers of their own use them; OpenAI and Groq take 64.
"""

import re
from hashlib import sha256
from itertools import chain

import msgspec

from gateway.domain.messages import Message, ToolCall, Usage
from gateway.ports.model import ModelCall, ModelSink

_ACCEPTED = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INVALID_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")
_MAX_STEM_LENGTH = 55


class ShortNames:
    """Short names of tools for servers that refuse their own names.

    The messages may also name tools that are no longer on offer.
    """

    def __init__(self, call: ModelCall) -> None:
        called = (each.name for message in call.messages for each in message.tool_calls)
        names = chain((tool.name for tool in call.tools if tool.client), called)
        self._short = {name: _shorten_name(name) for name in names if not _ACCEPTED.fullmatch(name)}
        self._own = {short: name for name, short in self._short.items()}

    def __bool__(self) -> bool:
        return bool(self._short)

    def shorten_call(self, call: ModelCall) -> ModelCall:
        """Return the call with short names of its tools."""
        tools = tuple(
            msgspec.structs.replace(tool, name=self._short[tool.name]) if tool.name in self._short else tool
            for tool in call.tools
        )
        choice = call.tool_choice
        if isinstance(choice, dict) and choice["type"] == "function":
            choice = {"type": "function", "function": {"name": self._find_short(choice["function"]["name"])}}
        messages = tuple(self._shorten_message(message) for message in call.messages)
        return msgspec.structs.replace(call, tools=tools, tool_choice=choice, messages=messages)

    def restore_call(self, call: ToolCall) -> ToolCall:
        """Return a model's call with the tool's own name."""
        name = self._own.get(call.name)
        return call if name is None else msgspec.structs.replace(call, name=name)

    def _shorten_message(self, message: Message) -> Message:
        calls = tuple(msgspec.structs.replace(call, name=self._find_short(call.name)) for call in message.tool_calls)
        return msgspec.structs.replace(message, tool_calls=calls) if calls else message

    def _find_short(self, name: str) -> str:
        return self._short.get(name, name)


class OwnNameSink(ModelSink):
    """Passes a model's output on, with the tools' own names."""

    def __init__(self, sink: ModelSink, names: ShortNames) -> None:
        self._sink = sink
        self._names = names
        self.capacity = sink.capacity

    def on_accepted(self) -> None:
        self._sink.on_accepted()

    def on_text(self, text: str) -> None:
        self._sink.on_text(text)

    def on_reasoning(self, text: str) -> None:
        self._sink.on_reasoning(text)

    def on_refusal(self, text: str) -> None:
        self._sink.on_refusal(text)

    def on_tool_call(self, call: ToolCall) -> None:
        self._sink.on_tool_call(self._names.restore_call(call))

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        self._sink.on_server_tool_call(call, output)

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        self._sink.on_retry(reason, attempt, discard=discard, model=model)

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self._sink.record_failed_usage(usage, cost_usd)


def _shorten_name(name: str) -> str:
    stem = _INVALID_CHARACTER.sub("_", name)[:_MAX_STEM_LENGTH]
    return f"{stem}_{sha256(name.encode()).hexdigest()[:8]}"
