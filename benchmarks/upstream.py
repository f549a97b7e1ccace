"""A mock upstream with Groq's wire format, cheap enough not to matter: every byte is rendered before it is asked for.

The prompt chooses the workload: `bench/TOKENS/DELAY_MS`, and `/tool` behind it for a tool call first. Every token
holds one TILDE, so that whoever reads the stream can count them however they were joined. Without a delay an answer is
written at once; each of its events is an HTTP chunk of its own, as Groq sends them.
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
TILDE = b"~"

_WORKLOAD = re.compile(rb"bench/(\d+)/(\d+)(/tool)?")
_CALCULATOR = re.compile(rb'"name":\s*"([A-Za-z0-9_-]*calculator)"')
_RESULT = re.compile(rb'"role":\s*"tool"')
_STREAM = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_HEAD = {"id": "chatcmpl-bench", "created": 1_790_000_000, "model": MODEL, "system_fingerprint": "fp_bench"}
_TIER = {"service_tier": "on_demand"}


def prompt(tokens: int, delay_ms: int = 0, *, tool: bool = False) -> str:
    """What to ask, to be answered with so many tokens at that pace."""
    return f"bench/{tokens}/{delay_ms}{'/tool' if tool else ''}"


class Upstream(asyncio.Protocol):
    """One connection."""

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
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < whole:
                return
            request, self._received = self._received[:whole], self._received[whole:]
            self._answer(request, request[end + 4 :])

    def _answer(self, request: bytes, body: bytes) -> None:
        if request.startswith(b"GET "):
            self._transport.write(_models())
            if b"Connection: close" in request:
                self._transport.close()
            return
        match = _WORKLOAD.search(body)
        tokens, delay_ms = (int(match[1]), int(match[2])) if match else (1, 0)
        name = _CALCULATOR.search(body) if match and match[3] and not _RESULT.search(body) else None
        call = name[1].decode() if name else None
        if not _STREAM.search(body):
            self._transport.write(_plain(tokens, call))
        elif call is not None or not delay_ms:
            self._transport.write(b"".join(_stream(tokens, call)))
        else:
            self._pace(_stream(tokens, None), delay_ms / 1000)

    def _pace(self, pieces: Sequence[bytes], delay: float) -> None:
        """A piece each `delay` by the clock: who is late sends all that is due."""
        started, sent = self._loop.time(), 0

        def send_due() -> None:
            nonlocal sent
            due = min(int((self._loop.time() - started) / delay + 1e-6) + 1, len(pieces))
            self._transport.write(pieces[sent] if due == sent + 1 else b"".join(pieces[sent:due]))
            sent = due
            if sent < len(pieces):
                self._timer = self._loop.call_at(started + sent * delay, send_due)

        send_due()


def _chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event({**_HEAD, "object": "chat.completion.chunk", "choices": [choice], **more})


def _event(chunk: dict[str, Any]) -> bytes:
    return _framed(b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n")


def _framed(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def _usage(tokens: int) -> dict[str, Any]:
    return {
        "queue_time": 0.001,
        "prompt_tokens": 20,
        "prompt_time": 0.001,
        "completion_tokens": tokens,
        "completion_time": 0.001,
        "total_tokens": 20 + tokens,
        "total_time": 0.002,
    }


def _texts(tokens: int) -> list[str]:
    """Each unlike the one before it: LiteLLM ends a stream that says the same a hundred times."""
    return [f" {n:03d}~" for n in range(tokens)]


def _call(name: str) -> dict[str, Any]:
    return {"id": "fc_bench", "type": "function", "function": {"name": name, "arguments": '{"expression":"23*19"}'}}


@cache
def _stream(tokens: int, call: str | None) -> tuple[bytes, ...]:
    """The pieces of an answer: the first with the head, then one a token, the last with all that ends it."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-request-id: req_bench\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    ) + _chunk({"role": "assistant", "content": ""}, x_groq={"id": "req_bench"})
    deltas = [{"tool_calls": [{"index": 0, **_call(call)}]}] if call else [{"content": text} for text in _texts(tokens)]
    x_groq = {"id": "req_bench", "usage": _usage(len(deltas))}
    tail = (
        _chunk({}, "tool_calls" if call else "stop", x_groq=x_groq)
        + _framed(b"data: [DONE]\n\n")
        + b"0\r\n\r\n"
    )  # fmt: skip
    pieces = [_chunk(delta) for delta in deltas]
    return (head + pieces[0], *pieces[1:-1], pieces[-1] + tail) if len(pieces) > 1 else (head + pieces[0] + tail,)


@cache
def _plain(tokens: int, call: str | None) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": None if call else "".join(_texts(tokens))}
    if call:
        message["tool_calls"] = [_call(call)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls" if call else "stop"}
    return _json({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _usage(tokens), **_TIER})


@cache
def _models() -> bytes:
    model = {"id": MODEL, "object": "model", "created": 1, "owned_by": "bench", "active": True}
    return _json({"object": "list", "data": [{**model, "context_window": 131_072, "max_completion_tokens": 65_536}]})


def _json(value: Any) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(arguments.parse_args().port))
