"""`/v1/embeddings` and `/v1/audio`: passed on to the model's server."""

from contextlib import AsyncExitStack
from functools import partial

from fastapi import APIRouter, Request, Response

from gateway.api.deps import PassThroughDep, PrincipalDep, UploadsDep
from gateway.api.http.relay import RelayedResponse
from gateway.api.http.uploads import UploadedForm, UploadReader
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Principal, Usage
from gateway.passthrough.metering import AudioMeter, MeteredUsage, TokenMeter, UsageMeter, estimate_audio
from gateway.passthrough.multipart import MultipartBody
from gateway.passthrough.service import PassedRequest, PassThroughService
from gateway.ports.upstream import UpstreamRequest
from gateway.wire.openai.passed_requests import EmbeddingsRequest, PassedBody, SpeechRequest

router = APIRouter(tags=["OpenAI"])

_EMBEDDINGS: dict[int | str, JsonObject] = {200: {"content": {"application/json": {}}}}
_SPEECH: dict[int | str, JsonObject] = {200: {"content": {"audio/*": {}}}}
_TEXT: dict[int | str, JsonObject] = {
    200: {"content": {"application/json": {}, "text/plain": {}, "text/event-stream": {}}}
}
FORM: JsonObject = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string", "maxLength": 200},
                    },
                    "additionalProperties": {"type": "string"},
                }
            }
        },
    }
}
_NOT_FETCHED = "url: nothing is fetched for a request: send the recording in `file`."


@router.post("/embeddings", summary="Create embeddings", response_class=Response, responses=_EMBEDDINGS)
async def create_embeddings(body: EmbeddingsRequest, principal: PrincipalDep, service: PassThroughDep) -> Response:
    """Relay the embeddings of the model's server."""
    return _relay_json(body, "embeddings", body.estimate_tokens(), principal, service)


@router.post("/audio/speech", summary="Speak a text", response_class=Response, responses=_SPEECH)
async def create_speech(body: SpeechRequest, principal: PrincipalDep, service: PassThroughDep) -> Response:
    """Relay the speech of the model's server as it comes."""
    return _relay_json(body, "audio/speech", body.estimate_tokens(), principal, service)


@router.post(
    "/audio/transcriptions",
    summary="Transcribe a recording",
    response_class=Response,
    responses=_TEXT,
    openapi_extra=FORM,
)
async def create_transcription(
    request: Request, principal: PrincipalDep, service: PassThroughDep, uploads: UploadsDep
) -> Response:
    """Relay the text of the model's server."""
    return await _relay_upload(request, "audio/transcriptions", principal, service, uploads)


@router.post(
    "/audio/translations",
    summary="Translate a recording",
    response_class=Response,
    responses=_TEXT,
    openapi_extra=FORM,
)
async def create_translation(
    request: Request, principal: PrincipalDep, service: PassThroughDep, uploads: UploadsDep
) -> Response:
    """Relay the English text of the model's server."""
    return await _relay_upload(request, "audio/translations", principal, service, uploads)


def _relay_json(
    body: PassedBody, path: str, tokens: int, principal: Principal, service: PassThroughService
) -> Response:
    model = service.check_model(principal, body.model)
    request = UpstreamRequest(
        method="POST",
        path=path,
        content_type="application/json",
        body=body.encode(),
        model=model,
        tokens=tokens,
        user=principal.user,
    )
    meter = TokenMeter(MeteredUsage(Usage(tokens, 0, tokens)))
    return RelayedResponse(partial(service.open_answer, _build_passed(request, principal, meter)))


async def _relay_upload(
    request: Request, path: str, principal: Principal, service: PassThroughService, uploads: UploadReader
) -> Response:
    async with AsyncExitStack() as stack:
        form = await stack.enter_async_context(uploads.read(request, principal.user))
        if form.get_field("url"):
            raise InvalidRequest(_NOT_FETCHED, param="url")
        model = service.check_model(principal, form.get_field("model") or "")
        estimate = estimate_audio(form.size)
        body = build_form_body(form)
        upstream_request = UpstreamRequest(
            method="POST",
            path=path,
            content_type=body.content_type,
            body=body,
            model=model,
            tokens=estimate.usage.total_tokens,
            user=principal.user,
        )
        passed = _build_passed(upstream_request, principal, AudioMeter(estimate))
        return RelayedResponse(partial(service.open_answer, passed), resources=stack.pop_all())


def build_form_body(form: UploadedForm) -> MultipartBody:
    """Write a client's form anew for the model's server."""
    return MultipartBody(form.fields, form.file, size=form.size, filename=form.filename, media_type=form.media_type)


def _build_passed(request: UpstreamRequest, principal: Principal, meter: UsageMeter) -> PassedRequest:
    action = f"upstream.{request.path.replace('/', '.')}"
    return PassedRequest(principal=principal, action=action, request=request, model=request.model, meter=meter)
