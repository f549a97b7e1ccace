"""A model server that sends exact bytes."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@dataclass(frozen=True)
class ScriptedAnswer:
    """A status, headers and the bytes of the body.

    With `is_cut`, the connection ends after the body without its proper end.
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    is_cut: bool = False


class ScriptedModelServer:
    """A model server that sends its answers in their order.

    Without another answer it says "All done." `requests` has the decoded bodies of all requests. `models` is its list
    of models.
    """

    def __init__(self) -> None:
        self.answers: deque[ScriptedAnswer] = deque()
        self.requests: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = []
        self.url = ""

    def script_answers(self, *answers: ScriptedAnswer) -> None:
        """Replace the answers, and forget the requests so far."""
        self.answers = deque(answers)
        self.requests.clear()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if self.answers:
            answer = self.answers.popleft()
        else:
            answer = stream_text("All done.") if body.get("stream") else whole_text("All done.")
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(request)
        await response.write(answer.body)
        if answer.is_cut:
            await asyncio.sleep(0)
            assert request.transport is not None
            request.transport.abort()
        return response

    async def _list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": self.models})


@asynccontextmanager
async def serve_scripted_model() -> AsyncGenerator[ScriptedModelServer]:
    """Serve a scripted model; `url` is its base address, for either provider."""
    server = ScriptedModelServer()
    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.router.add_post("/{path:.*}", server._complete)  # pyright: ignore[reportPrivateUsage]
    app.router.add_get("/{path:.*}", server._list_models)  # pyright: ignore[reportPrivateUsage]
    async with TestServer(app) as running:
        server.url = str(running.make_url("")).rstrip("/")
        yield server


def stream_chunks(chunks: Iterable[dict[str, Any]], *, is_done: bool = True) -> ScriptedAnswer:
    """Stream whole chunks, then `[DONE]`."""
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return ScriptedAnswer("".join([*lines, "data: [DONE]\n\n" * is_done]).encode())


def stream_deltas(
    *deltas: dict[str, Any], finish_reason: str | None = "stop", usage: dict[str, Any] | None = USAGE
) -> ScriptedAnswer:
    """Stream the deltas, then the finish reason and the usage."""
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    if finish_reason is not None:
        choices.append({"index": 0, "delta": {}, "finish_reason": finish_reason})
    chunks: list[dict[str, Any]] = [{"id": "c1", "model": "m", "choices": [choice]} for choice in choices]
    return stream_chunks([*chunks, {"id": "c1", "model": "m", "choices": [], "usage": usage}] if usage else chunks)


def stream_text(text: str) -> ScriptedAnswer:
    return stream_deltas({"role": "assistant", "content": text})


def stream_call(name: str, arguments: str, *, finish_reason: str = "tool_calls") -> ScriptedAnswer:
    """Stream one tool call in one delta."""
    function = {"name": name, "arguments": arguments}
    delta = {"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": function}]}
    return stream_deltas(delta, finish_reason=finish_reason)


def whole_text(text: str) -> ScriptedAnswer:
    """Answer without a stream."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json_answer({"id": "c1", "model": "m", "choices": [choice], "usage": USAGE})


def refuse_call(failed_generation: object, **error: object) -> ScriptedAnswer:
    """Refuse what the model wrote, as Groq does."""
    details = {"message": "Failed to call a function.", "type": "invalid_request_error", "code": "tool_use_failed"}
    return json_answer({"error": details | {"failed_generation": failed_generation} | error}, status=400)


def json_answer(body: object, *, status: int = 200) -> ScriptedAnswer:
    return ScriptedAnswer(json.dumps(body).encode(), status, {"Content-Type": "application/json"})
