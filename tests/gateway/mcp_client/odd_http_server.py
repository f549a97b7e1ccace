"""An HTTP proxy of the trial server that answers chosen requests oddly."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tests.gateway.mcp_client.mcp_servers import TrialServer

Answer = Callable[["OddHttpServer", Any, Any], Awaitable[None]]
JSON_HEADERS = [(b"content-type", b"application/json")]
STREAM_HEADERS = [(b"content-type", b"text/event-stream")]


class OddHttpServer:
    """Answers the methods in `answers` by the test's functions.

    It answers the others like the trial server.
    """

    def __init__(self, *, modern: bool = True, **answers: Answer) -> None:
        self.trial = TrialServer()
        self._inner = self.trial.create_app(modern=modern)
        self.answers = answers
        self.counts: Counter[str] = Counter()
        self.receives: dict[str, Any] = {}
        """The last request of each method, to wait for its end."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._inner(scope, receive, send)
            return
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        request = json.loads(body)
        method = request.get("method", "")
        self.counts[method] += 1
        self.receives[method] = receive
        answer = self.answers.get(method.rpartition("/")[2])
        if answer is not None:
            await answer(self, request, send)
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return messages.pop() if messages else await receive()

        await self._inner(scope, receive_again, send)


async def send_answer(send: Any, status: int, body: bytes = b"", headers: Any = JSON_HEADERS) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_result(send: Any, request: Any, result: Any) -> None:
    await send_answer(send, 200, json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode())


def refuse(status: int) -> Answer:
    """Answer with a status and no JSON-RPC."""

    async def answer(_server: OddHttpServer, _request: Any, send: Any) -> None:
        await send_answer(send, status)

    return answer


async def stay_silent(_server: OddHttpServer, _request: Any, _send: Any) -> None:
    """Never answer; the server's end cancels it."""
    await asyncio.Event().wait()
