"""`/v1/files` and `/v1/batches` of the model's server, each object with an owner."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import ConfigDict, Field

from gateway.api.deps import FilesDep, PrincipalDep, UploadsDep
from gateway.api.http.relay import RelayedResponse
from gateway.api.routes.upstream.audio import FORM, build_form_body
from gateway.domain.errors import InvalidRequest, NotFound
from gateway.domain.messages import JsonObject
from gateway.passthrough.files import FileService
from gateway.passthrough.multipart import MultipartBody
from gateway.wire.openai.item_lists import ItemOrder, ItemPage
from gateway_runtime.requests.model import RequestModel

router = APIRouter(tags=["OpenAI"])

_Limit = Annotated[int, Query(ge=1, le=1_000, description="Maximum number of objects in the page.")]
_NO_NUL = r"^[^\x00]*$"
_After = Annotated[
    str | None, Query(max_length=128, pattern=_NO_NUL, description="Id of the last object of the page before.")
]
_Order = Annotated[ItemOrder, Query(description="Newest first (desc) or oldest first (asc).")]
_Purpose = Annotated[str | None, Query(max_length=64, pattern=_NO_NUL)]
_CONTENT: dict[int | str, JsonObject] = {200: {"content": {"application/octet-stream": {}}}}


class BatchCreate(RequestModel):
    """Requests of a file to run in the background.

    Other fields are passed on.
    """

    model_config = ConfigDict(extra="allow")

    input_file_id: str = Field(min_length=1, max_length=128)
    endpoint: str = Field(min_length=1, max_length=100)
    completion_window: Literal["24h"] | str = Field(max_length=20)
    metadata: dict[str, str] | None = Field(default=None, max_length=16)


def _require(files: FileService | None) -> FileService:
    if files is None:
        raise NotFound("Files and batches are off here. The administrator can set UPSTREAM_FILES=on.")
    return files


@router.post("/files", summary="Upload a file", openapi_extra=FORM)
async def create_file(request: Request, principal: PrincipalDep, files: FilesDep, uploads: UploadsDep) -> JsonObject:
    """Upload a file to the model's server.

    Requests of batches are checked line by line.
    """
    service = _require(files)
    async with uploads.read(request, principal.user) as form:
        purpose = form.get_field("purpose")
        if not purpose:
            raise InvalidRequest("purpose: is required.", param="purpose")
        if purpose != "batch":
            return await service.create_file(principal, build_form_body(form), None)
        async with service.rewrite_batch_file(form.file) as (file, estimate):
            body = MultipartBody(
                form.fields, file, size=file.tell(), filename=form.filename, media_type=form.media_type
            )
            return await service.create_file(principal, body, estimate)


@router.get("/files", summary="List your files")
async def list_files(
    principal: PrincipalDep,
    files: FilesDep,
    limit: _Limit = 100,
    after: _After = None,
    order: _Order = "desc",
    purpose: _Purpose = None,
) -> JsonObject:
    """Your files, also those that your batches wrote."""
    found = await _require(files).list_objects(
        principal, "file", limit=limit + 1, after=after, order=order, purpose=purpose
    )
    return _build_page(found, limit)


@router.get("/files/{file_id}", summary="Get a file")
async def get_file(file_id: str, principal: PrincipalDep, files: FilesDep) -> JsonObject:
    """A file of yours, without its content."""
    return await _require(files).get(principal, "file", file_id)


@router.get("/files/{file_id}/content", summary="Download a file", response_class=Response, responses=_CONTENT)
async def get_file_content(file_id: str, principal: PrincipalDep, files: FilesDep) -> Response:
    """The content of a file, as it comes from the model's server."""
    content = await _require(files).open_content(principal, file_id)
    return RelayedResponse(lambda: content, is_download=True)


@router.delete("/files/{file_id}", summary="Delete a file")
async def delete_file(file_id: str, principal: PrincipalDep, files: FilesDep) -> JsonObject:
    """Delete a file at the model's server."""
    return await _require(files).delete_file(principal, file_id)


@router.post("/batches", summary="Create a batch")
async def create_batch(body: BatchCreate, principal: PrincipalDep, files: FilesDep) -> JsonObject:
    """Run the requests of a file in the background.

    Their estimated cost is reserved first.
    """
    return await _require(files).create_batch(principal, body.model_dump(mode="json", exclude_unset=True))


@router.get("/batches", summary="List your batches")
async def list_batches(
    principal: PrincipalDep,
    files: FilesDep,
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of objects in the page.")] = 20,
    after: _After = None,
) -> JsonObject:
    """Your batches, newest first."""
    found = await _require(files).list_objects(principal, "batch", limit=limit + 1, after=after)
    return _build_page(found, limit)


@router.get("/batches/{batch_id}", summary="Get a batch")
async def get_batch(batch_id: str, principal: PrincipalDep, files: FilesDep) -> JsonObject:
    """A batch of yours, as it is now."""
    return await _require(files).get(principal, "batch", batch_id)


@router.post("/batches/{batch_id}/cancel", summary="Cancel a batch")
async def cancel_batch(batch_id: str, principal: PrincipalDep, files: FilesDep) -> JsonObject:
    """Cancel a batch. Requests that have been answered cost what they used."""
    return await _require(files).cancel_batch(principal, batch_id)


def _build_page(objects: list[JsonObject], limit: int) -> JsonObject:
    page = ItemPage(limit=limit)
    for item in objects:
        page.add(item)
    return page.build()
