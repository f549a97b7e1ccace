"""Questions of MCP servers to users, in both protocol eras.

`input_required` of protocol 2026-07-28, and inline elicitation of legacy servers.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from mcp.types import (
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    InputResponses,
)

from gateway.domain.messages import Answer, PendingInput, Question, StoredQuestion

_MAX_QUESTIONS = 10
_MAX_MESSAGE_LENGTH = 4_000


class UnsupportedElicitation(Exception):
    """The server asks for something that a user cannot answer here.

    `str()` is for the model.
    """


def parse_input_request(result: InputRequiredResult) -> PendingInput:
    """The server's questions, with its opaque state.

    Raises:
        UnsupportedElicitation: it asks for sampling or roots, which the gateway does not declare, or too much.
    """
    requests = result.input_requests or {}
    if not requests or len(requests) > _MAX_QUESTIONS:
        raise UnsupportedElicitation(f"The server asked {len(requests)} questions at once, so the call was ended.")
    questions = tuple(_parse_question(key, request) for key, request in requests.items())
    return PendingInput(questions, result.request_state)


def _parse_question(key: str, request: InputRequest) -> Question:
    if not isinstance(request, ElicitRequest):
        message = "The server asked for something other than an answer of a person, so the call was ended."
        raise UnsupportedElicitation(message)
    return _make_question(key, request.params)


def _make_question(key: str, params: ElicitRequestParams) -> Question:
    match params:
        case ElicitRequestFormParams() as form:
            return Question(key, "question", form.message[:_MAX_MESSAGE_LENGTH], form.requested_schema)
        case ElicitRequestURLParams() as page:
            return Question(key, "authorization", page.message[:_MAX_MESSAGE_LENGTH], url=page.url)


def make_input_responses(answers: Sequence[StoredQuestion]) -> InputResponses | None:
    """The answers in the protocol's form."""
    return {stored.question.key: make_elicit_result(stored.answer) for stored in answers if stored.answer} or None


def make_inline_question(params: ElicitRequestParams) -> Question:
    """The question of a legacy server during a call.

    The call stays open until it is answered.
    """
    question = _make_question("elicitation", params)
    return msgspec.structs.replace(question, held=True)


def make_elicit_result(answer: Answer) -> ElicitResult:
    """An answer in the protocol's form; an expired one counts as cancelled."""
    action = "cancel" if answer.action == "expire" else answer.action
    content: Any = answer.content if action == "accept" else None
    return ElicitResult(action=action, content=content)
