"""Answers as Groq writes them, streamed and plain."""

import hashlib
import re
import time
from typing import Any
from uuid import uuid4

import msgspec

from gateway.common.concurrency import LruDict
from gateway.simulator.request import Chat, JsonObject, get_text
from gateway.simulator.responder import Reply

_TOKEN = re.compile(r"\s*\S{1,12}|\s+")
_encode = msgspec.json.Encoder().encode


class PromptCache:
    """Hashes of the prefixes of recent requests. A prefix that was seen before counts as cached."""

    def __init__(self, max_prefixes: int = 4096) -> None:
        self._prefixes: LruDict[bytes, None] = LruDict(max_prefixes)

    def count_cached_tokens(self, chat: Chat) -> int:
        """Estimated tokens of the longest known prefix. All prefixes of the request are known from then on."""
        digest = hashlib.blake2b(_encode(chat.tools), digest_size=16)
        tokens, cached = estimate_tokens(_encode(chat.tools).decode()) if chat.tools else 0, 0
        for message in chat.messages:
            digest.update(_encode(message))
            tokens += estimate_tokens(get_text(message)) + 4
            key = digest.digest()
            if key in self._prefixes:
                cached = tokens
            self._prefixes[key] = None
        return cached


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return (len(text) + 3) // 4


class SimulatedAnswer:
    """One answer of the simulated model, cut to what the request allows."""

    def __init__(self, chat: Chat, reply: Reply, cache: PromptCache) -> None:
        self.id = f"chatcmpl-{uuid4()}"
        self.request_id = f"req_{uuid4().hex[:26]}"
        self._chat = chat
        self._created = int(time.time())
        reasoning = _TOKEN.findall(reply.reasoning)
        self.reasoning = reasoning[: chat.max_output_tokens]
        self.text, self.finish_reason = _truncate_tokens(chat, _TOKEN.findall(reply.text), spent=len(reasoning))
        self.calls = [
            {
                "id": f"fc_{uuid4()}",
                "type": "function",
                "function": {"name": c.name, "arguments": _to_json(c.arguments)},
            }
            for c in reply.calls
        ]
        if self.calls:
            self.finish_reason = "tool_calls"
        self.usage = self._count_usage(cache.count_cached_tokens(chat))

    def make_frames(self) -> list[bytes]:
        """Every frame of the stream but `[DONE]`."""
        deltas: list[JsonObject] = [{"reasoning": token, "channel": "analysis"} for token in self.reasoning]
        deltas += [{"content": token} for token in self.text]
        deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(self.calls)]
        first = self._make_chunk({"role": "assistant", "content": ""}, x_groq={"id": self.request_id})
        last = self._make_chunk({}, self.finish_reason, x_groq={"id": self.request_id, "usage": self.usage})
        frames = [encode_frame(first), *(encode_frame(self._make_chunk(delta)) for delta in deltas), encode_frame(last)]
        if (self._chat.stream_options or {}).get("include_usage"):
            frames.append(encode_frame(self._with_header("chat.completion.chunk", choices=[], usage=self.usage)))
        return frames

    def make_error_frame(self, message: str) -> bytes:
        """A last chunk that carries an error in place of a finish reason."""
        return encode_frame(self._make_chunk({}, x_groq={"id": self.request_id, "error": message}))

    def to_response(self) -> JsonObject:
        """The whole answer as one object."""
        message: JsonObject = {"role": "assistant", "content": "".join(self.text) or None}
        if self.reasoning:
            message["reasoning"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return self._with_header("chat.completion", choices=[choice], usage=self.usage, x_groq={"id": self.request_id})

    def _make_chunk(self, delta: JsonObject, finish_reason: str | None = None, **more: Any) -> JsonObject:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._with_header("chat.completion.chunk", choices=[choice], **more)

    def _with_header(self, kind: str, **fields: Any) -> JsonObject:
        head = {"id": self.id, "object": kind, "created": self._created, "model": self._chat.model}
        return head | {"system_fingerprint": "fp_simulated"} | fields

    def _count_usage(self, cached: int) -> JsonObject:
        prompt = sum(estimate_tokens(get_text(message)) + 4 for message in self._chat.messages)
        prompt += estimate_tokens(_to_json(self._chat.tools)) if self._chat.tools else 0
        said = len(self.reasoning) + len(self.text) + sum(estimate_tokens(_to_json(call)) for call in self.calls)
        return {
            "queue_time": 0.002,
            "prompt_tokens": prompt,
            "prompt_time": round(prompt / 10_000, 6),
            "completion_tokens": said,
            "completion_time": round(said / 500, 6),
            "total_tokens": prompt + said,
            "total_time": round(prompt / 10_000 + said / 500, 6),
            "prompt_tokens_details": {"cached_tokens": min(cached, prompt)},
            "completion_tokens_details": {"reasoning_tokens": len(self.reasoning)},
        }


def encode_frame(chunk: Any, event: str | None = None) -> bytes:
    head = b"event: %s\n" % event.encode() if event else b""
    return head + b"data: " + _encode(chunk) + b"\n\n"


def _to_json(value: Any) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _truncate_tokens(chat: Chat, tokens: list[str], *, spent: int) -> tuple[list[str], str]:
    """The tokens up to the first stop text or the limit, of which reasoning has `spent` some, and why they end."""
    stops = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    text = "".join(tokens)
    ends = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    if ends:
        tokens = _TOKEN.findall(text[: min(ends)])
    if chat.max_output_tokens is not None and spent + len(tokens) > chat.max_output_tokens:
        return tokens[: max(chat.max_output_tokens - spent, 0)], "length"
    return tokens, "stop"
