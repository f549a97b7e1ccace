"""What MCP servers ask of people: `input_required` of protocol 2026-07-28, and elicitation of the older ones."""

from collections.abc import Sequence
from typing import Any

from mcp.client.session import ClientRequestContext
from mcp.types import (
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequiredResult,
    InputResponses,
)

from gateway.log import get_logger
from gateway.messages import InputNeeded, KeptInput, Question

log = get_logger(__name__)

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
    match request.params:
        case ElicitRequestFormParams() as form:
            return Question(key, "question", form.message[:_LONGEST], form.requested_schema)
        case ElicitRequestURLParams() as page:
            return Question(key, "authorization", page.message[:_LONGEST], url=page.url)


def responses_to(answers: Sequence[KeptInput]) -> InputResponses | None:
    """The answers as the server takes them; one that expired counts as cancelled."""
    return {kept.question.key: _response(kept) for kept in answers} or None


def _response(kept: KeptInput) -> ElicitResult:
    assert kept.answer is not None
    action = "cancel" if kept.answer.action == "expire" else kept.answer.action
    content: Any = kept.answer.content if action == "accept" else None
    return ElicitResult(action=action, content=content)


async def decline(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
    """Servers of the handshake era ask in the middle of a call and hold it open; they get a proper no."""
    log.info("elicitation_declined", request=str(context.request_id), mode=params.mode)
    return ElicitResult(action="decline")
