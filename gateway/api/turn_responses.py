"""What every route that runs a turn shares: begin it, then answer with it, streamed or whole, in any wire format."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Literal
from uuid import UUID

from fastapi import Request, Response
from jsonschema.exceptions import SchemaError

from gateway.agent.subscriptions import Reading
from gateway.agent.turn import ActiveTurn
from gateway.api.deps import State, unless_disconnected
from gateway.api.http.body_limit import check_size
from gateway.common.json_schema import Uncheckable, checker, worst_error
from gateway.common.logging import request_id
from gateway.domain.errors import Conflict, ConversationBusy, InvalidRequest, ServerStopping, error_of
from gateway.domain.events import Entry, TurnCancelled, TurnCompleted, TurnFailed
from gateway.domain.messages import Answer, BusMessage, JsonObject, Parameters, Principal, TurnRequest
from gateway.store.models import Turn
from gateway.wire.sse import SSE, FrameStream
from gateway.wire.turn_summary import Collected

FIRST_CHUNK_PATIENCE = 10.0
BUSY_PATIENCE = 120.0
_CANCEL_PATIENCE = 5.0

Write = Callable[[AsyncIterator[list[Entry]], Callable[[], str | None]], AsyncGenerator[bytes]]
"""A wire format: from batches of events, and why they ended before the turn did, to bytes."""


def defaults(state: State) -> Parameters:
    """What the administrator has set where a request says nothing."""
    settings = state.settings
    return Parameters(
        temperature=settings.groq_temperature,
        top_p=settings.groq_top_p,
        max_tokens=settings.groq_max_tokens,
        reasoning_effort=settings.groq_reasoning_effort,
        reasoning_format=settings.groq_reasoning_format,
    )


async def begin(
    turn_request: TurnRequest,
    request: Request,
    principal: Principal,
    state: State,
    *,
    key: str | None = None,
    if_busy: Literal["wait", "reject"] = "wait",
) -> ActiveTurn | Turn:
    """A new turn, which runs for the sake of this request; or the one that the idempotency key has begun before.

    Raises:
        GatewayError: it cannot be begun.
    """
    check_size(turn_request, most_messages=state.settings.max_messages, most_chars=state.settings.max_message_chars)
    if key is not None and (known := await state.turns.find(principal.user, key)) is not None:
        request.state.turn_id = str(known.id)
        return known
    while True:
        try:
            turn = await state.runner.start(turn_request, principal, request_id.get())
        except ConversationBusy:
            if if_busy == "reject" or turn_request.conversation_id is None:
                raise
            busy = await state.conversations.busy_turn(turn_request.conversation_id, principal)
            if busy is not None and busy.status == "waiting":
                raise ConversationBusy("Another turn of this conversation waits for an answer.") from None
            if busy is not None:  # else it has ended meanwhile
                await unless_disconnected(request, _ended(busy.id, state))
        except Conflict:
            known = await state.turns.find(principal.user, key) if key is not None else None
            if known is None:
                raise
            request.state.turn_id = str(known.id)
            return known
        else:
            turn.join()
            request.state.turn_id = str(turn.id)
            return turn


async def _ended(turn_id: UUID, state: State) -> None:
    reading = state.following.open(turn_id)
    try:
        async with asyncio.timeout(BUSY_PATIENCE):
            async for _ in reading.log.follow():
                pass
    except TimeoutError:
        raise ConversationBusy from None
    finally:
        reading.close()


def streamed(turn: ActiveTurn | Turn, state: State, write: Write, *, media_type: str = SSE) -> Response:
    """The turn's events as they happen; or its failure, where it failed before the model's first output."""
    if isinstance(turn, Turn):
        return following(turn, state, write)

    async def ready() -> dict[str, str]:
        await turn.until_opened(FIRST_CHUNK_PATIENCE)
        return _headers(turn)

    frames = write(turn.log.follow(), lambda: turn.log.closing)
    return FrameStream(frames, headers={}, ready=ready, on_close=turn.leave, media_type=media_type)


def following(turn: Turn, state: State, write: Write, after: int = 0) -> Response:
    """A stream that only reads the turn: it may come and go."""
    reading = state.following.open(turn.id, kept=turn.store)
    frames = write(reading.log.follow(after), lambda: reading.log.closing)
    return FrameStream(frames, headers=_headers(turn), on_close=reading.close)


def _headers(turn: ActiveTurn | Turn) -> dict[str, str]:
    """The turn's id; and whether its answer is an earlier one's, where that was allowed and is known."""
    headers = {"X-Turn-Id": str(turn.id)}
    if isinstance(turn, Turn):
        asked = "cache_ttl" in turn.options and turn.status == "completed"
    else:
        asked = turn.record.request.cache_ttl is not None
    return headers | ({"X-Gateway-Cache": "hit" if turn.cached else "miss"} if asked else {})


async def collected(turn: ActiveTurn | Turn, request: Request, response: Response, state: State) -> Collected:
    """The whole turn, at its end; or as far as it came, where it waits for a person.

    Raises:
        GatewayError: it failed, was cancelled, or the gateway stops.
    """
    reading = state.following.open(turn.id, kept=turn.store) if isinstance(turn, Turn) else Reading(turn.log)
    try:
        whole = await unless_disconnected(request, _collect(reading.log.follow()))
    finally:
        reading.close()
        if isinstance(turn, ActiveTurn):
            turn.leave()
    response.headers.update(_headers(turn))
    match whole.end:
        case TurnCompleted():
            return whole
        case TurnFailed() | TurnCancelled() as end:
            failure = turn.failure if isinstance(turn, ActiveTurn) else None
            raise failure or error_of(end.error)
        case None if whole.waits:
            return whole
        case None:
            raise ServerStopping


async def _collect(batches: AsyncIterator[list[Entry]]) -> Collected:
    whole = Collected()
    async for batch in batches:
        for entry in batch:
            whole.take(entry.event)
    return whole


async def stop_turn(turn: Turn, state: State) -> None:
    """Stop a turn wherever it runs, and wait a little for its end. One that has ended stays as it is."""
    if turn.status not in ("running", "waiting"):
        return
    reading = state.following.open(turn.id)  # one that is not kept shows its end alone
    try:
        await state.turns.request_cancel(turn.id)
        message = BusMessage("cancel", turn.id)
        state.runner.heard(message)
        state.bus.publish(message)
        state.bus.publish(BusMessage("orphan", turn.id))
        async with asyncio.timeout(_CANCEL_PATIENCE):
            async for _ in reading.log.follow():
                pass
    except TimeoutError:
        pass  # the wish is kept, for whoever runs the turn
    finally:
        reading.close()


async def answer_question(turn_id: UUID, input_id: UUID, answer: Answer, state: State) -> None:
    """Decide what a turn asks; whichever worker comes first goes on with it.

    Raises:
        NotFound: the turn has not asked this.
        InvalidRequest: the answer does not fit the question.
        Conflict: it has been decided already.
    """
    question = (await state.inputs.get(turn_id, input_id)).question
    if answer.action == "accept" and question.schema is not None:
        _check_content(answer.content or {}, question.schema)
    await state.inputs.answer(turn_id, input_id, answer)
    state.bus.publish(BusMessage("orphan", turn_id))


def _check_content(content: JsonObject, schema: JsonObject) -> None:
    try:
        error = worst_error(checker(schema), content)
    except (SchemaError, Uncheckable):
        raise InvalidRequest("The question's own schema is not valid, so it can only be declined.") from None
    if error is not None:
        path = ".".join(["content", *map(str, error.absolute_path)])
        raise InvalidRequest(f"{path}: {str(error.message)[:500]}", param=path)
