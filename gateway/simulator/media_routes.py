"""Routes of the simulator for embeddings and audio."""

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.domain.messages import JsonObject
from gateway.simulator.faults import FaultPlan
from gateway.simulator.media import make_embeddings, make_speech, make_transcription
from gateway.simulator.pieces import Flow, PiecedResponse, TrackStream, raise_fault
from gateway.simulator.request import ApiError, Chat, check_api_key

_PATHS = ("embeddings", "audio/speech", "audio/transcriptions", "audio/translations")


class MediaRoutes:
    """Embeddings and audio, with the simulator's faults."""

    def __init__(
        self, faults: FaultPlan, record: Callable[[JsonObject], Awaitable[None]], track: TrackStream, flow: Flow
    ) -> None:
        self._faults = faults
        self._record = record
        self._track = track
        self._flow = flow

    def list_routes(self) -> list[Route]:
        return [Route(f"/openai/v1/{path}", partial(self._answer, path), methods=["POST"]) for path in _PATHS]

    async def _answer(self, path: str, request: Request) -> Response:
        check_api_key(request.headers.get("authorization", ""))
        if path.startswith("audio/t"):
            form = await request.form()
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            file = form.get("file")
            if file is None or isinstance(file, str):
                raise ApiError(400, "'file' : property is required", param="file")
            audio, task = await file.read(), path.removeprefix("audio/")[:-1]
            content, media_type = make_transcription(audio, fields, file.filename or "", task=task)
            seen: JsonObject = fields | {"bytes": len(audio)}
        elif path == "audio/speech":
            content, media_type, _ = make_speech(await request.body())
            seen = msgspec.json.decode(await request.body())
        else:
            content, media_type = msgspec.json.encode(make_embeddings(await request.body())), "application/json"
            seen = msgspec.json.decode(await request.body())
        await self._record({"path": path, **seen})
        prompt = {"role": "user", "content": str(seen.get("input", ""))}
        faults = self._faults.take_faults(Chat(model=str(seen["model"]), messages=[prompt]))
        raise_fault(faults)
        return PiecedResponse(content, media_type, faults, self._track, self._flow)
