"""Answers in Groq's wire format, streamed or whole."""

import hashlib
import re
import time
from uuid import uuid4

import msgspec

from gateway.common.concurrency import LruDict
from gateway.domain.messages import JsonObject
from gateway.simulator.replies import Reply
from gateway.simulator.request import Chat, get_text

_TOKEN = re.compile(r"\s*\S{1,12}|\s+")
_encode = msgspec.json.Encoder().encode


class PromptCache:
    """Hashes of the prompt prefixes of recent requests.

    They simulate Groq's prompt cache.
    """

    def __init__(self, max_prefixes: int = 4096) -> None:
        self._prefixes: LruDict[bytes, None] = LruDict(max_prefixes)

    def count_cached_tokens(self, chat: Chat) -> int:
        """Estimate the tokens of the longest cached prefix.

        Also add all prefixes of the request.
        """
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
    """Estimate the tokens of a text."""
    return (len(text) + 3) // 4


class SimulatedAnswer:
    """An answer of the simulated model, truncated to the request's limits."""

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
        """Make all frames of the stream except `[DONE]`."""
        deltas: list[JsonObject] = [{"reasoning": token, "channel": "analysis"} for token in self.reasoning]
        deltas += [{"content": token} for token in self.text]
        deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(self.calls)]
        first = self._make_chunk({"role": "assistant", "content": ""}, x_groq={"id": self.request_id})
        last = self._make_chunk({}, self.finish_reason, x_groq={"id": self.request_id, "usage": self.usage})
        frames = [encode_frame(first), *(encode_frame(self._make_chunk(delta)) for delta in deltas), encode_frame(last)]
        if (self._chat.stream_options or {}).get("include_usage"):
            frames.append(encode_frame(self._with_header("chat.completion.chunk", choices=[], usage=self.usage)))
        return frames

    def make_text_frames(self, text: str, *, count: int) -> bytes:
        """Make `count` chunks with the same text."""
        return encode_frame(self._make_chunk({"content": text})) * count

    def make_error_frame(self, message: str) -> bytes:
        """Make a last chunk with an error.

        It has no finish reason.
        """
        return encode_frame(self._make_chunk({}, x_groq={"id": self.request_id, "error": message}))

    def to_response(self) -> JsonObject:
        """Return the answer as one object, without streaming."""
        message: JsonObject = {"role": "assistant", "content": "".join(self.text) or None}
        if self.reasoning:
            message["reasoning"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = self.calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return self._with_header("chat.completion", choices=[choice], usage=self.usage, x_groq={"id": self.request_id})

    def _make_chunk(self, delta: JsonObject, finish_reason: str | None = None, **fields: object) -> JsonObject:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._with_header("chat.completion.chunk", choices=[choice], **fields)

    def _with_header(self, kind: str, **fields: object) -> JsonObject:
        header = {"id": self.id, "object": kind, "created": self._created, "model": self._chat.model}
        return header | {"system_fingerprint": "fp_simulated"} | fields

    def _count_usage(self, cached: int) -> JsonObject:
        prompt = sum(estimate_tokens(get_text(message)) + 4 for message in self._chat.messages)
        prompt += estimate_tokens(_to_json(self._chat.tools)) if self._chat.tools else 0
        completion = len(self.reasoning) + len(self.text) + sum(estimate_tokens(_to_json(call)) for call in self.calls)
        return {
            "queue_time": 0.002,
            "prompt_tokens": prompt,
            "prompt_time": round(prompt / 10_000, 6),
            "completion_tokens": completion,
            "completion_time": round(completion / 500, 6),
            "total_tokens": prompt + completion,
            "total_time": round(prompt / 10_000 + completion / 500, 6),
            "prompt_tokens_details": {"cached_tokens": min(cached, prompt)},
            "completion_tokens_details": {"reasoning_tokens": len(self.reasoning)},
        }


def encode_frame(chunk: object, event: str | None = None) -> bytes:
    """Encode a server-sent event."""
    prefix = b"event: %s\n" % event.encode() if event else b""
    return prefix + b"data: " + _encode(chunk) + b"\n\n"


def _to_json(value: object) -> str:
    return value if isinstance(value, str) else _encode(value).decode()


def _truncate_tokens(chat: Chat, tokens: list[str], *, spent: int) -> tuple[list[str], str]:
    """Truncate tokens at the first stop sequence or the limit.

    Return them with the finish reason. `spent`: tokens of the limit that the reasoning has used.
    """
    stops = [chat.stop] if isinstance(chat.stop, str) else chat.stop or []
    text = "".join(tokens)
    ends = [start for stop in stops if stop and (start := text.find(stop)) >= 0]
    if ends:
        tokens = _TOKEN.findall(text[: min(ends)])
    if chat.max_output_tokens is not None and spent + len(tokens) > chat.max_output_tokens:
        return tokens[: max(chat.max_output_tokens - spent, 0)], "length"
    return tokens, "stop"
