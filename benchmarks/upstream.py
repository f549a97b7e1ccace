"""Mock upstream with Groq's wire format.

Answers are rendered in advance, so that it uses little CPU. The prompt chooses the workload: `bench/TOKENS/DELAY_MS`,
followed by `/tool` for a tool call first. Every token contains one TOKEN_MARK, so that readers can count tokens in any
wire format. Without a delay, an answer is written at once; each of its events is an HTTP chunk of its own, as Groq
sends them.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import uvloop

MODEL = "openai/gpt-oss-120b"
TOKEN_MARK = b"~"

_WORKLOAD = re.compile(rb"bench/(\d+)/(\d+)(/tool)?")
_CALCULATOR = re.compile(rb'"name":\s*"([A-Za-z0-9_-]*calculator)"')
_RESULT = re.compile(rb'"role":\s*"tool"')
_STREAM = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_COMPLETION_FIELDS = {
    "id": "chatcmpl-bench",
    "created": 1_790_000_000,
    "model": MODEL,
    "system_fingerprint": "fp_bench",
}
_SERVICE_TIER_FIELD = {"service_tier": "on_demand"}


def build_prompt(tokens: int, delay_ms: int = 0, *, tool: bool = False) -> str:
    """Build a prompt that is answered with `tokens` tokens, `delay_ms` apart."""
    return f"bench/{tokens}/{delay_ms}{'/tool' if tool else ''}"


class UpstreamProtocol(asyncio.Protocol):
    """A client's connection."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._received, 0, end)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < total:
                return
            request, self._received = self._received[:total], self._received[total:]
            self._send_answer(request, request[end + 4 :])

    def _send_answer(self, request: bytes, body: bytes) -> None:
        if request.startswith(b"GET "):
            self._transport.write(_render_models())
            if b"Connection: close" in request:
                self._transport.close()
            return
        match = _WORKLOAD.search(body)
        tokens, delay_ms = (int(match[1]), int(match[2])) if match else (1, 0)
        name = _CALCULATOR.search(body) if match and match[3] and not _RESULT.search(body) else None
        call = name[1].decode() if name else None
        if not _STREAM.search(body):
            self._transport.write(_render_completion(tokens, call))
        elif call is not None or not delay_ms:
            self._transport.write(b"".join(_render_stream(tokens, call)))
        else:
            self._send_paced(_render_stream(tokens, None), delay_ms / 1000)

    def _send_paced(self, pieces: Sequence[bytes], delay: float) -> None:
        """Send one piece every `delay` seconds by the clock.

        A late timer sends all pieces that are due.
        """
        started_at, sent = self._loop.time(), 0

        def send_due() -> None:
            nonlocal sent
            due = min(int((self._loop.time() - started_at) / delay + 1e-6) + 1, len(pieces))
            self._transport.write(pieces[sent] if due == sent + 1 else b"".join(pieces[sent:due]))
            sent = due
            if sent < len(pieces):
                self._timer = self._loop.call_at(started_at + sent * delay, send_due)

        send_due()


def _format_chunk(delta: dict[str, Any], finish_reason: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _format_event({**_COMPLETION_FIELDS, "object": "chat.completion.chunk", "choices": [choice], **fields})


def _format_event(chunk: dict[str, Any]) -> bytes:
    return _format_http_chunk(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")


def _format_http_chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def _build_usage(tokens: int) -> dict[str, Any]:
    return {
        "queue_time": 0.001,
        "prompt_tokens": 20,
        "prompt_time": 0.001,
        "completion_tokens": tokens,
        "completion_time": 0.001,
        "total_tokens": 20 + tokens,
        "total_time": 0.002,
    }


def _build_texts(tokens: int) -> list[str]:
    """Build different tokens.

    LiteLLM ends a stream that repeats a token a hundred times.
    """
    return [f" {n:03d}~" for n in range(tokens)]


def _build_tool_call(name: str) -> dict[str, Any]:
    return {"id": "fc_bench", "type": "function", "function": {"name": name, "arguments": '{"expression":"23*19"}'}}


@cache
def _render_stream(tokens: int, call: str | None) -> tuple[bytes, ...]:
    """Render an answer in pieces.

    The first piece has the head, each piece one token, the last one the end of the stream.
    """
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-request-id: req_bench\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    ) + _format_chunk({"role": "assistant", "content": ""}, x_groq={"id": "req_bench"})
    deltas: list[dict[str, Any]] = [{"content": text} for text in _build_texts(tokens)]
    if call:
        deltas = [{"tool_calls": [{"index": 0, **_build_tool_call(call)}]}]
    x_groq = {"id": "req_bench", "usage": _build_usage(len(deltas))}
    finish_reason = "tool_calls" if call else "stop"
    tail = _format_chunk({}, finish_reason, x_groq=x_groq) + _format_http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    pieces = [_format_chunk(delta) for delta in deltas]
    return (head + pieces[0], *pieces[1:-1], pieces[-1] + tail) if len(pieces) > 1 else (head + pieces[0] + tail,)


@cache
def _render_completion(tokens: int, call: str | None) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": None if call else "".join(_build_texts(tokens))}
    if call:
        message["tool_calls"] = [_build_tool_call(call)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if call else "stop"}
    return _render_json(
        {
            **_COMPLETION_FIELDS,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _build_usage(tokens),
            **_SERVICE_TIER_FIELD,
        }
    )


@cache
def _render_models() -> bytes:
    model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "bench", "active": True}
    return _render_json(
        {"object": "list", "data": [{**model, "context_window": 131_072, "max_completion_tokens": 65_536}]}
    )


def _render_json(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def _run_server(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(UpstreamProtocol, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_run_server(parser.parse_args().port))
