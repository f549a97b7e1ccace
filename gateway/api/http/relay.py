"""Responses that relay the answer of the model's server."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.http.request_context import STARTED_SCOPE_KEY
from gateway.common.concurrency import WorkInterrupted, run_until
from gateway.common.logging import get_logger
from gateway.domain.errors import ClientGone, GatewayError
from gateway.ports.upstream import UpstreamAnswer

log = get_logger(__name__)

_MEDIA_TYPE = re.compile(
    r"(application/(json|jsonl|x-ndjson|octet-stream)|text/(plain|event-stream|vtt|srt)|audio/[\w.+-]+)(;.*)?"
)
_BINARY = "application/octet-stream"


class AnswerBroken(Exception):
    """The answer broke off after its start.

    The connection is closed, so that the client notices.
    """


class RelayedResponse(Response):
    """The answer of the model's server, piece by piece.

    The answer is opened once the response runs, so that an error is answered as usual; it is left when the client
    disconnects. `resources` are closed at the end. Only media types that no browser runs are passed on.
    """

    def __init__(
        self,
        open_answer: Callable[[], AbstractAsyncContextManager[UpstreamAnswer]],
        *,
        resources: AsyncExitStack | None = None,
        is_download: bool = False,
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._open_answer = open_answer
        self._resources = resources or AsyncExitStack()
        self._is_download = is_download

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._resources:
                await run_until(self._relay(send), wait_for_disconnect(receive))
        except WorkInterrupted:
            if STARTED_SCOPE_KEY not in scope:
                raise ClientGone from None
        except GatewayError as error:
            if STARTED_SCOPE_KEY not in scope:
                raise
            log.warning("relayed_answer_broken", code=error.code)
            if not self.headers.get("content-type", "").startswith("text/event-stream"):
                raise AnswerBroken(error.message) from error
            frame = msgspec.json.encode({"type": "error", "error": msgspec.to_builtins(error.to_error_info())})
            await send({"type": "http.response.body", "body": b"event: error\ndata: %s\n\n" % frame})

    async def _relay(self, send: Send) -> None:
        async with self._open_answer() as answer:
            content_type = answer.content_type
            self.headers["content-type"] = content_type if _MEDIA_TYPE.fullmatch(content_type) else _BINARY
            if self._is_download:
                self.headers["content-disposition"] = "attachment"
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in answer.iterate_bytes():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
