"""What MCP servers ask of people: `input_required` of protocol 2026-07-28, and elicitation of the older ones."""

from collections.abc import Sequence
from typing import Any

import msgspec
from mcp.types import (
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequiredResult,
    InputResponses,
)

from gateway.domain.messages import Answer, InputNeeded, KeptInput, Question

_MOST_QUESTIONS = 10
_LONGEST = 4_000


class UnfitQuestion(Exception):
    """The server asks for what a person cannot give here. `str()` is for the model."""


def questions_of(result: InputRequiredResult) -> InputNeeded:
    """The server's questions, with its sealed state.

    Raises:
        UnfitQuestion: it asks for a model's answer or for roots, which the gateway never offered, or for too much.
    """
    asked = result.input_requests or {}
    if not asked or len(asked) > _MOST_QUESTIONS:
        raise UnfitQuestion(f"The server asked {len(asked)} questions at once, and the call was given up.")
    return InputNeeded(tuple(_question(key, request) for key, request in asked.items()), result.request_state)


def _question(key: str, request: Any) -> Question:
    if not isinstance(request, ElicitRequest):
        raise UnfitQuestion("The server asked for something else than a person's answer, and the call was given up.")
    return _asked(key, request.params)


def _asked(key: str, params: ElicitRequestParams) -> Question:
    match params:
        case ElicitRequestFormParams() as form:
            return Question(key, "question", form.message[:_LONGEST], form.requested_schema)
        case ElicitRequestURLParams() as page:
            return Question(key, "authorization", page.message[:_LONGEST], url=page.url)


def responses_to(answers: Sequence[KeptInput]) -> InputResponses | None:
    """The answers as the server takes them."""
    return {kept.question.key: answered(kept.answer) for kept in answers if kept.answer} or None


def held_question(params: ElicitRequestParams) -> Question:
    """What a server of the handshake era asks in the middle of a call, which it holds open."""
    question = _asked("elicitation", params)
    return msgspec.structs.replace(question, held=True)


def answered(answer: Answer) -> ElicitResult:
    """An answer as servers take it; one that expired counts as cancelled."""
    action = "cancel" if answer.action == "expire" else answer.action
    content: Any = answer.content if action == "accept" else None
    return ElicitResult(action=action, content=content)
