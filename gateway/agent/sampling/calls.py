"""Tool calls whose servers ask for the gateway's model, or for roots."""

from uuid import UUID

import msgspec

from gateway.agent.sampling.limits import SamplingRefused
from gateway.agent.sampling.sampler import TurnSampler
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError
from gateway.domain.messages import Answer, PendingInput, Question, StoredQuestion, ToolResult, text_block
from gateway.ports.tools import Toolbox, ToolCallRequest

log = get_logger(__name__)

_MAX_ROUNDS = 20
_NOT_STORED = UUID(int=0)


async def call_with_sampling(
    toolbox: Toolbox, sampler: TurnSampler, call_id: str, request: ToolCallRequest
) -> ToolResult | PendingInput:
    """Call a tool, and serve requests of its server.

    The answers of `request` are those of a person; accepted requests among them are served now. Questions to a person
    are returned.
    """
    server = request.spec.server
    try:
        answers = [
            msgspec.structs.replace(stored, answer=await sampler.answer_request(call_id, server, stored.question))
            if stored.question.request is not None
            else stored
            for stored in request.answers
            if stored.question.kind != "approval" or stored.question.request is not None
        ]
        for _ in range(_MAX_ROUNDS):
            result = await toolbox.call_tool(msgspec.structs.replace(request, answers=answers))
            if not isinstance(result, PendingInput) or not result.questions:
                return result
            if any(question.kind != "host" for question in result.questions):
                return result
            answers = [
                StoredQuestion(
                    _NOT_STORED,
                    call_id,
                    question,
                    result.state,
                    await sampler.answer_request(call_id, server, question),
                )
                for question in result.questions
            ]
    except SamplingRefused as error:
        return _refuse(server, str(error))
    return _refuse(server, f"it asked more than {_MAX_ROUNDS} times")


def _refuse(server: str, reason: str) -> ToolResult:
    note = f"The MCP server {server!r} asked for an answer of the model, which it did not get: {reason}"
    return ToolResult("error", [text_block(note)])


async def sample_inline(sampler: TurnSampler, call_id: str, server: str, question: Question) -> Answer:
    """Serve a request that a server makes during its call."""
    try:
        return await sampler.answer_request(call_id, server, question)
    except SamplingRefused:
        return Answer("decline", by="gateway")
    except GatewayError as error:  # the server must not read it; the turn meets it again
        log.warning("sampling_failed", server=server, code=error.code)
        return Answer("decline", by="gateway")
