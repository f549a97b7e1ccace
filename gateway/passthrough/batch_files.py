"""Input files of batches: checked line by line, and their costs estimated."""

from typing import IO, Any, Literal

import msgspec

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, Usage
from gateway.domain.tokens import CHARS_PER_TOKEN
from gateway.passthrough.model_names import is_model_name
from gateway.ports.model import ModelCatalog

_MAX_LINES = 50_000
_MAX_LINE_BYTES = 1024 * 1024
_MAX_MODELS = 50
_MAX_COUNT = 10_000_000
_EXPECTED_ANSWER_TOKENS = 1_024
"""Of a request that does not limit its answer."""
BATCH_PRICE = 0.5
"""Share of the usual price that Groq and OpenAI ask for batches."""

BatchUrl = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


class _BatchLine(msgspec.Struct):
    custom_id: str
    method: Literal["POST"]
    url: BatchUrl
    body: JsonObject


class ModelEstimate(msgspec.Struct):
    """Requests to a model, and what they may use at most."""

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    usd: float = 0.0

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.answer_tokens, self.prompt_tokens + self.answer_tokens)


class BatchEstimate(msgspec.Struct):
    """Address and models of a file's requests, with their costs."""

    url: str = ""
    models: dict[str, ModelEstimate] = {}

    @property
    def tokens(self) -> int:
        return sum(model.usage.total_tokens for model in self.models.values())

    @property
    def usd(self) -> float:
        return sum(model.usd for model in self.models.values())


def rewrite_batch_file(source: IO[bytes], target: IO[bytes], catalog: ModelCatalog) -> BatchEstimate:
    """Write each line anew, and estimate the costs.

    The server thus reads what was checked: of a field that a line has twice, servers may read different ones.

    Raises:
        InvalidRequest: a line is no request, or the file has too many.
    """
    estimate, number = BatchEstimate(), 0
    source.seek(0)
    while line := source.readline(_MAX_LINE_BYTES + 1):
        if not line.strip():
            continue
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise InvalidRequest(f"Line {number} of the file is longer than {_MAX_LINE_BYTES:,} bytes.", param="file")
        if number > _MAX_LINES:
            raise InvalidRequest(f"The file has more than {_MAX_LINES:,} requests.", param="file")
        request = _parse_line(line, number)
        _add_request(estimate, request, number)
        target.write(msgspec.json.encode(request) + b"\n")
    if not number:
        raise InvalidRequest("The file has no requests.", param="file")
    for name, model in estimate.models.items():
        model.usd = (catalog.get_model_info(name).calculate_cost(model.usage) or 0.0) * BATCH_PRICE
    return estimate


def _parse_line(line: bytes, number: int) -> _BatchLine:
    try:
        return msgspec.json.decode(line, type=_BatchLine)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Line {number} of the file is no request of a batch: {error}", param="file") from None
    except JSON_DECODE_ERRORS:
        raise InvalidRequest(f"Line {number} of the file is not valid JSON.", param="file") from None


def _add_request(estimate: BatchEstimate, request: _BatchLine, number: int) -> None:
    name: Any = request.body.get("model")
    if not is_model_name(name):
        raise InvalidRequest(f"Line {number} of the file: body.model must name a model.", param="file")
    if estimate.url not in ("", request.url):
        raise InvalidRequest(f"Line {number} of the file: all requests must have the same url.", param="file")
    estimate.url = request.url
    if name not in estimate.models and len(estimate.models) == _MAX_MODELS:
        raise InvalidRequest(f"The file names more than {_MAX_MODELS} models.", param="file")
    model = estimate.models.setdefault(name, ModelEstimate())
    model.requests += 1
    model.prompt_tokens += len(msgspec.json.encode(request.body)) // CHARS_PER_TOKEN
    if request.url != "/v1/embeddings":
        model.answer_tokens += _estimate_answer(request.body)


def _estimate_answer(body: JsonObject) -> int:
    limits = (body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    limit = next((value for value in map(_read_count, limits) if value is not None), _EXPECTED_ANSWER_TOKENS)
    return min(limit * (_read_count(body.get("n")) or 1), _MAX_COUNT)


def _read_count(value: object) -> int | None:
    return min(value, _MAX_COUNT) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
