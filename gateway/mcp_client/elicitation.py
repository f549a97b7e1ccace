"""Questions of MCP servers to users, in both protocol eras.

`input_required` of protocol 2026-07-28, and inline elicitation of legacy servers.
"""

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
from mcp.types import (
    CreateMessageRequest,
    ElicitationRequiredErrorData,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    InputResponse,
    InputResponses,
    ListRootsRequest,
    ListRootsResult,
)
from mcp.types.jsonrpc import URL_ELICITATION_REQUIRED
from pydantic import TypeAdapter, ValidationError

from gateway.domain.hosts import HostProfile
from gateway.domain.messages import Answer, JsonObject, PendingInput, Question, StoredQuestion
from gateway.mcp_client.connection.roots import InvalidRoots, check_roots
from gateway_runtime.json_schema.rules import SchemaTooLarge, measure_value

_MAX_QUESTIONS = 10
_MAX_MESSAGE_LENGTH = 4_000
_MAX_KEY_LENGTH, _MAX_URL_LENGTH = 200, 4_000
_MAX_STATE_LENGTH = 1024 * 1024
_MAX_SCHEMA_NODES, _MAX_SCHEMA_CHARS = 2_000, 64 * 1024
_CALL_AGAIN_STATE = "mcp-agent-gateway/call-again"
_WITHHELD_ROOTS_STATE = "mcp-agent-gateway/roots "
_INPUT_RESPONSE: TypeAdapter[InputResponse] = TypeAdapter(InputResponse)


class UnsupportedElicitation(Exception):
    """The server asks for something that a user cannot answer here.

    `str()` is for the model.
    """


ParseRequest = Callable[[str, CreateMessageRequest | ListRootsRequest], Question | None]
"""Converts a sampling or roots request; None refuses it."""


def parse_input_request(result: InputRequiredResult, parse_request: ParseRequest) -> PendingInput:
    """The server's questions, with its opaque state.

    Raises:
        UnsupportedElicitation: it asks for sampling or roots that nobody provides, or too much.
    """
    requests = result.input_requests or {}
    if not requests or len(requests) > _MAX_QUESTIONS:
        raise UnsupportedElicitation(f"The server asked {len(requests)} questions at once, so the call was ended.")
    if len(result.request_state or "") > _MAX_STATE_LENGTH:
        raise UnsupportedElicitation("The server's state of the question is too large, so the call was ended.")
    questions = tuple(_parse_question(key, request, parse_request) for key, request in requests.items())
    return PendingInput(questions, result.request_state)


def parse_request_for_host(
    host: HostProfile, key: str, request: CreateMessageRequest | ListRootsRequest
) -> Question | None:
    """Convert a request for a host that declares the capability."""
    capability = "sampling" if isinstance(request, CreateMessageRequest) else "roots"
    return make_host_request(key, request) if host.declares(capability) else None


def _parse_question(key: str, request: InputRequest, parse_request: ParseRequest) -> Question:
    if isinstance(request, ElicitRequest):
        return _make_question(key, request.params)
    if (question := parse_request(key, request)) is None:
        message = "The server asked for something other than an answer of a person, so the call was ended."
        raise UnsupportedElicitation(message)
    return question


def make_host_request(key: str, request: CreateMessageRequest | ListRootsRequest) -> Question:
    """An unchanged request for sampling or roots, for the host.

    Raises:
        UnsupportedElicitation: its key is too long.
    """
    _check_key(key)
    dumped = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    return Question(key, "host", "", request={"method": dumped["method"], "params": dumped.get("params") or {}})


def parse_required_pages(refusal: JsonObject | None) -> PendingInput | None:
    """The pages that a server's JSON-RPC error requires a user to visit.

    None if the error is another one, or its pages cannot be shown. The call is made again after the answers, which the
    server does not get.
    """
    if refusal is None or refusal["code"] != URL_ELICITATION_REQUIRED:
        return None
    try:
        pages = ElicitationRequiredErrorData.model_validate(refusal["data"]).elicitations
        if not 0 < len(pages) <= _MAX_QUESTIONS:
            return None
        questions = tuple(_make_question(page.elicitation_id or str(n), page) for n, page in enumerate(pages, start=1))
    except (ValidationError, UnsupportedElicitation):
        return None
    return PendingInput(questions, _CALL_AGAIN_STATE)


def answers_required_pages(answers: Sequence[StoredQuestion]) -> bool:
    """Return whether answers are those to `parse_required_pages()`."""
    return bool(answers) and answers[0].state == _CALL_AGAIN_STATE


def _check_key(key: str) -> None:
    if len(key) > _MAX_KEY_LENGTH:
        raise UnsupportedElicitation("The server's question has too long a name, so the call was ended.")


def _make_question(key: str, params: ElicitRequestParams) -> Question:
    _check_key(key)
    match params:
        case ElicitRequestFormParams() as form:
            _check_form_size(form.requested_schema)
            return Question(key, "question", form.message[:_MAX_MESSAGE_LENGTH], form.requested_schema)
        case ElicitRequestURLParams() as page:
            if len(page.url) > _MAX_URL_LENGTH:
                raise UnsupportedElicitation("The server's question has too long an address, so the call was ended.")
            if not _is_web_address(page.url):
                raise UnsupportedElicitation("The server's question leads to no web page, so the call was ended.")
            message, elicitation_id = page.message[:_MAX_MESSAGE_LENGTH], page.elicitation_id
            if elicitation_id is not None and len(elicitation_id) > _MAX_KEY_LENGTH:
                raise UnsupportedElicitation("The id of the server's question is too long, so the call was ended.")
            return Question(key, "url", message, url=page.url, elicitation_id=elicitation_id)


def _is_web_address(url: str) -> bool:
    """Whether a person may safely be sent to a URL.

    Only http and https, since a client may open the URL as it is (`javascript:`, `file:`, `data:`). No user or
    password, which disguise the host, and no characters that a browser removes or shows as others.
    """
    try:
        parts = urlsplit(url)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False
    is_plain = url.isascii() and url.isprintable() and not any(character in url for character in ' \\"<>^`{|}')
    return is_plain and parts.scheme in ("http", "https") and has_host and "@" not in parts.netloc


def _check_form_size(schema: JsonObject) -> None:
    try:
        measure_value(schema, max_nodes=_MAX_SCHEMA_NODES, max_chars=_MAX_SCHEMA_CHARS)
    except SchemaTooLarge:
        raise UnsupportedElicitation("The form of the server's question is too large, so the call was ended.") from None


class _WithheldRoots(msgspec.Struct, frozen=True):
    """Requests for roots that the gateway answers.

    It has their keys, and the server's state.
    """

    keys: tuple[str, ...]
    state: str | None


def withhold_roots_requests(result: InputRequiredResult) -> InputRequiredResult:
    """Move the requests for roots into the result's state.

    Raises:
        UnsupportedElicitation: the key of one is too long.
    """
    requests = result.input_requests or {}
    keys = tuple(key for key, request in requests.items() if isinstance(request, ListRootsRequest))
    for key in keys:
        _check_key(key)
    if not 0 < len(keys) <= _MAX_QUESTIONS:
        return result
    note = msgspec.json.encode(_WithheldRoots(keys, result.request_state)).decode()
    others = {key: request for key, request in requests.items() if key not in keys}
    return InputRequiredResult(input_requests=others or None, request_state=f"{_WITHHELD_ROOTS_STATE}{note}")


def _read_withheld_roots(answers: Sequence[StoredQuestion]) -> _WithheldRoots:
    state = answers[0].state if answers else None
    if state is None or not state.startswith(_WITHHELD_ROOTS_STATE):
        return _WithheldRoots((), state)
    try:
        return msgspec.json.decode(state.removeprefix(_WITHHELD_ROOTS_STATE), type=_WithheldRoots)
    except msgspec.MsgspecError:  # the server's own state begins like that
        return _WithheldRoots((), state)


def get_server_state(answers: Sequence[StoredQuestion]) -> str | None:
    """Return the state of the server whose questions have these answers."""
    return _read_withheld_roots(answers).state


def make_input_responses(
    answers: Sequence[StoredQuestion], roots: ListRootsResult | None = None
) -> InputResponses | None:
    """The answers in the protocol's form.

    `roots` is the gateway's own answer to a request for them.
    """
    responses = {
        stored.question.key: _make_response(stored, stored.answer, roots) for stored in answers if stored.answer
    }
    if roots is not None:
        responses.update(dict.fromkeys(_read_withheld_roots(answers).keys, roots))
    return responses or None


def _make_response(stored: StoredQuestion, answer: Answer, roots: ListRootsResult | None) -> InputResponse:
    """The answer in the protocol's form.

    Raises:
        UnsupportedElicitation: the host's answer is not one.
    """
    request = stored.question.request
    if request is None and stored.question.kind != "host":
        return make_elicit_result(answer)
    if roots is not None and request is not None and request["method"] == "roots/list":
        return roots
    try:
        response = _INPUT_RESPONSE.validate_python(answer.content)
        return check_roots(response) if isinstance(response, ListRootsResult) else response
    except (ValidationError, InvalidRoots):
        raise UnsupportedElicitation("The host did not answer the server's request, so the call was ended.") from None


def make_inline_question(params: ElicitRequestParams) -> Question:
    """The question of a legacy server during a call.

    The call stays open until it is answered.

    Raises:
        UnsupportedElicitation: the question is too large.
    """
    question = _make_question("elicitation", params)
    return msgspec.structs.replace(question, held=True)


def find_elicitation_ids(data: Any) -> list[str]:
    """The ids of the visits that a refusal (-32042) asks for."""
    try:
        elicitations = ElicitationRequiredErrorData.model_validate(data).elicitations
    except ValidationError:
        return []
    return [page.elicitation_id for page in elicitations[:_MAX_QUESTIONS] if page.elicitation_id is not None]


def make_elicit_result(answer: Answer) -> ElicitResult:
    """An answer in the protocol's form; an expired one counts as cancelled."""
    action = "cancel" if answer.action == "expire" else answer.action
    content: Any = answer.content if action == "accept" else None
    return ElicitResult(action=action, content=content)
