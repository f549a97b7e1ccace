"""`/chatkit`: the server of ChatKit's front ends.

The official SDK (extra `chatkit`) reads requests and writes answers; it is imported at the first request.
"""

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from gateway.api.http.extras import import_face
from gateway.domain.messages import JsonObject

router = APIRouter(tags=["ChatKit"])
_CONTENT: dict[int | str, JsonObject] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
_EXAMPLE: JsonObject = {
    "type": "threads.create",
    "params": {
        "input": {
            "content": [{"type": "input_text", "text": "What is 23*19?"}],
            "attachments": [],
            "inference_options": {},
        }
    },
}


@router.post("/chatkit", summary="Serve ChatKit", response_class=JSONResponse, responses=_CONTENT)
async def serve_chatkit(_body: Annotated[JsonObject, Body(examples=[_EXAMPLE])], request: Request) -> Response:
    """Answer a request of ChatKit: its `type` and `params`.

    A thread is a conversation. Requests with a message, a retry or an action are answered with a stream of events;
    others with JSON. The `metadata` may have `model`, `system`, `tools`, `approval` and `code`.
    """
    server = await import_face("gateway.api.routes.chatkit.server", extra="chatkit", package="chatkit")
    return await server.answer_chatkit(request)
