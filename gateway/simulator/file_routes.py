"""Files and batches of the simulator, in memory."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.common.concurrency import LruDict
from gateway.domain.messages import JsonObject
from gateway.simulator.faults import FaultPlan
from gateway.simulator.media import decode_body, make_embeddings
from gateway.simulator.pieces import make_json_response, raise_fault
from gateway.simulator.request import ApiError, Chat, check_api_key, parse_chat_request
from gateway.simulator.responder import make_reply
from gateway.simulator.wire import PromptCache, SimulatedAnswer

_MAX_OBJECTS = 1_000
_ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings")


class _BatchBody(msgspec.Struct):
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class _RequestLine(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: JsonObject


class FileRoutes:
    """Files and batches, as Groq and OpenAI have them.

    A batch runs when it is read for the first time while streams are not paused.
    """

    def __init__(
        self, faults: FaultPlan, record: Callable[[JsonObject], Awaitable[None]], is_paused: Callable[[], bool]
    ) -> None:
        self._faults = faults
        self._record = record
        self._is_paused = is_paused
        self._cache = PromptCache()
        self.files: LruDict[str, tuple[JsonObject, bytes]] = LruDict(_MAX_OBJECTS)
        self.batches: LruDict[str, JsonObject] = LruDict(_MAX_OBJECTS)

    def list_routes(self) -> list[Route]:
        root = "/openai/v1"
        return [
            Route(f"{root}/files", self._create_file, methods=["POST"]),
            Route(f"{root}/files/{{id}}", self._get_file, methods=["GET"]),
            Route(f"{root}/files/{{id}}", self._delete_file, methods=["DELETE"]),
            Route(f"{root}/files/{{id}}/content", self._get_content),
            Route(f"{root}/batches", self._create_batch, methods=["POST"]),
            Route(f"{root}/batches", self._list_batches),
            Route(f"{root}/batches/{{id}}", self._get_batch),
            Route(f"{root}/batches/{{id}}/cancel", self._cancel_batch, methods=["POST"]),
        ]

    async def _create_file(self, request: Request) -> Response:
        check_api_key(request.headers.get("authorization", ""))
        form = await request.form()
        file, purpose = form.get("file"), form.get("purpose")
        if file is None or isinstance(file, str) or not isinstance(purpose, str):
            raise ApiError(400, "'file' and 'purpose' : properties are required", param="file")
        faults = self._faults.take_faults(Chat(model="files", messages=[]))
        raise_fault(faults)
        described = self._store_file(await file.read(), file.filename or "file", purpose)
        await self._record({"path": "files", "purpose": purpose, "id": described["id"]})
        if (slow := faults.get("slow_first_token")) is not None:
            await asyncio.sleep(slow.seconds)
        return make_json_response(described)

    async def _get_file(self, request: Request) -> Response:
        return make_json_response(self._find_file(request)[0])

    async def _get_content(self, request: Request) -> Response:
        return Response(self._find_file(request)[1], media_type="application/octet-stream")

    async def _delete_file(self, request: Request) -> Response:
        described, _ = self._find_file(request)
        del self.files[described["id"]]
        return make_json_response({"id": described["id"], "object": "file", "deleted": True})

    async def _create_batch(self, request: Request) -> Response:
        check_api_key(request.headers.get("authorization", ""))
        body: _BatchBody = decode_body(await request.body(), _BatchBody)
        if body.input_file_id not in self.files or body.endpoint not in _ENDPOINTS:
            raise ApiError(400, "Invalid input_file_id or endpoint", param="input_file_id")
        total = len(self.files[body.input_file_id][1].splitlines())
        batch: JsonObject = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": body.endpoint,
            "errors": None,
            "input_file_id": body.input_file_id,
            "completion_window": body.completion_window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "request_counts": {"total": total, "completed": 0, "failed": 0},
            "metadata": body.metadata,
        }
        self.batches[batch["id"]] = batch
        await self._record({"path": "batches", **msgspec.to_builtins(body)})
        raise_fault(self._faults.take_faults(Chat(model="batches", messages=[])))  # the batch runs nevertheless
        return make_json_response(batch)

    async def _list_batches(self, request: Request) -> Response:
        check_api_key(request.headers.get("authorization", ""))
        return make_json_response({"object": "list", "data": list(self.batches.values())[::-1], "has_more": False})

    async def _get_batch(self, request: Request) -> Response:
        batch = self._find_batch(request)
        if batch["status"] in ("validating", "in_progress"):
            batch["status"] = "in_progress"
            if not self._is_paused():
                self._run_batch(batch)
        return make_json_response(batch)

    async def _cancel_batch(self, request: Request) -> Response:
        batch = self._find_batch(request)
        if batch["status"] not in ("validating", "in_progress"):
            raise ApiError(409, f"Cannot cancel a batch with status '{batch['status']}'.")
        batch["status"] = "cancelled"
        return make_json_response(batch)

    def _run_batch(self, batch: JsonObject) -> None:
        outputs: list[bytes] = []
        errors: list[bytes] = []
        tokens = [0, 0]
        for content in self.files[batch["input_file_id"]][1].splitlines():
            line = msgspec.json.decode(content, type=_RequestLine)
            try:
                answer = self._answer(line)
            except ApiError as error:
                errors.append(_format_line(line, error.status, error.body))
                continue
            outputs.append(_format_line(line, 200, answer))
            tokens[0] += answer["usage"]["prompt_tokens"]
            tokens[1] += answer["usage"].get("completion_tokens", 0)
        if outputs:
            batch["output_file_id"] = self._store_file(b"\n".join(outputs), "output.jsonl", "batch_output")["id"]
        if errors:
            batch["error_file_id"] = self._store_file(b"\n".join(errors), "errors.jsonl", "batch_output")["id"]
        batch["request_counts"] |= {"completed": len(outputs), "failed": len(errors)}
        batch["usage"] = {"input_tokens": tokens[0], "output_tokens": tokens[1], "total_tokens": sum(tokens)}
        batch["status"] = "completed"

    def _answer(self, line: _RequestLine) -> JsonObject:
        content = msgspec.json.encode(line.body)
        if line.url == "/v1/embeddings":
            return make_embeddings(content)
        chat = parse_chat_request(content)
        return SimulatedAnswer(chat, make_reply(chat), self._cache).to_response()

    def _store_file(self, content: bytes, filename: str, purpose: str) -> JsonObject:
        described: JsonObject = {
            "id": f"file-{uuid.uuid4().hex}",
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        self.files[described["id"]] = (described, content)
        return described

    def _find_file(self, request: Request) -> tuple[JsonObject, bytes]:
        check_api_key(request.headers.get("authorization", ""))
        name = request.path_params["id"]
        if name not in self.files:
            raise ApiError(404, f"No such File object: {name}", param="id")
        return self.files[name]

    def _find_batch(self, request: Request) -> JsonObject:
        check_api_key(request.headers.get("authorization", ""))
        name = request.path_params["id"]
        if name not in self.batches:
            raise ApiError(404, f"No such batch: {name}", param="id")
        return self.batches[name]


def _format_line(line: _RequestLine, status: int, body: JsonObject) -> bytes:
    response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
    return msgspec.json.encode({"id": uuid.uuid4().hex, "custom_id": line.custom_id, "response": response})
