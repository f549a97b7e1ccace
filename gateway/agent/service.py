"""Operations on turns, for every API."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Literal, TypeVar
from uuid import UUID

from msgspec.structs import replace

from gateway.agent.branches.requests import build_branch_request
from gateway.agent.conversation_queue import ConversationQueue
from gateway.agent.following.presence import ClientListener, ClientPresence
from gateway.agent.following.turn_handle import FollowedTurn, StartedTurn, TurnHandle, TurnListener
from gateway.agent.runner import Runner
from gateway.agent.structured_output import check_answer_content
from gateway.agent.subscriptions import INPUT_REQUIRED, TurnSubscriptions
from gateway.agent.turn import ActiveTurn
from gateway.common.concurrency import LruDict
from gateway.common.load import LoadMonitor
from gateway.common.webhook_urls import check_webhook_url
from gateway.config import Settings
from gateway.domain.branches import TurnBranch, TurnOrigin
from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.conversation_ids import is_new_conversation, parse_conversation_id
from gateway.domain.errors import (
    Conflict,
    ConversationBusy,
    ErrorInfo,
    GatewayError,
    InvalidRequest,
    JournalExpired,
    ListTooLong,
    ServerStopping,
    StorageRefused,
    StorageUnavailable,
    TextTooLong,
    TurnNotStored,
    error_from_info,
)
from gateway.domain.events import JournalEntry
from gateway.domain.messages import Answer, Principal, StoredQuestion, TurnRequest
from gateway.domain.toolsets import limit_to_own_turns
from gateway.ports.listener import EventFold
from gateway.ports.store import Bus, QuestionRepository, TurnRepository

CANCEL_TIMEOUT_SECONDS = 5.0
_MAX_STARTED_TURNS = 4_096

RunBusyWait = Callable[[Coroutine[object, object, None]], Awaitable[None]]
"""Awaits a coroutine, or cancels it and raises on a disconnect."""

F = TypeVar("F", bound=EventFold)


class TurnService:
    """Operations on turns, independent of HTTP and MCP."""

    def __init__(
        self,
        settings: Settings,
        runner: Runner,
        subscriptions: TurnSubscriptions,
        *,
        turns: TurnRepository,
        queue: ConversationQueue,
        questions: QuestionRepository,
        bus: Bus,
        load: LoadMonitor,
    ) -> None:
        self._runner = runner
        self._load = load
        self._subscriptions = subscriptions
        self._turns = turns
        self._queue = queue
        self._questions = questions
        self._bus = bus
        self._presence = ClientPresence(bus, self.cancel_turn)
        self._max_messages = settings.max_messages
        self._max_message_chars = settings.max_message_chars
        self._default_model = settings.default_model
        self._webhook_hosts = settings.webhook_hosts
        self._started_turns: LruDict[str, UUID] = LruDict(_MAX_STARTED_TURNS)

    @property
    def running_turns(self) -> int:
        return self._runner.running_turns

    @property
    def is_stopping(self) -> bool:
        return self._runner.is_stopping

    async def start_turn(
        self,
        request: TurnRequest,
        principal: Principal,
        *,
        request_id: str | None = None,
        if_busy: Literal["wait", "reject"] = "wait",
        run_busy_wait: RunBusyWait | None = None,
        retry_count: int | None = None,
    ) -> TurnHandle:
        """Start a turn, or return an equal request's turn.

        Requests are equal if they have the same idempotency key, or if this one is a retry and has the same hash.
        `retry_count` is the number of the attempt, of clients that retry. The configured defaults apply to parameters
        that the request omits. While another turn of the conversation runs, or another request waits for it, this
        waits, through `run_busy_wait` if given.

        Raises:
            InvalidRequest: the request has too many messages, a message is too long, or the id of the conversation is
                not valid.
            Overloaded: this worker has no capacity for new work.
            ConversationBusy: the conversation was not free in time, or a turn of it waits for a person.
            GatewayError: the turn cannot be started; nothing was stored.
        """
        self._check_request(request)
        if (earlier_turn := await self._find_started(request, principal, retry_count=retry_count)) is not None:
            return earlier_turn
        self._load.check_capacity()
        request = replace(request, model=request.model or self._default_model)
        async with self._queue.make_place(request, principal, may_wait=if_busy == "wait") as place:
            while True:
                try:
                    turn = await self._runner.start(request, principal, place.open_conversation, request_id)
                    if request.request_hash is not None:
                        self._started_turns[request.request_hash] = turn.id
                    return StartedTurn(turn, retries=retry_count is not None)
                except ConversationBusy as busy:
                    wait = place.wait(busy)
                    await (wait if run_busy_wait is None else run_busy_wait(wait))
                except Conflict:
                    if (earlier_turn := await self._find_started(request, principal)) is None:
                        raise
                    return earlier_turn

    async def count_tokens(self, request: TurnRequest, principal: Principal) -> int:
        """Estimate the tokens of a request's prompt; see `start_turn` for errors."""
        self._check_request(request)
        request = replace(request, model=request.model or self._default_model, parent_turn_id=None)
        return await self._runner.planner.count_tokens(request, principal)

    async def start_branch(
        self, turn_id: UUID, branch: TurnBranch, principal: Principal, *, request_id: str | None = None
    ) -> TurnHandle:
        """Start a fork or replay of a turn; see `start_turn` and docs/adr/0026.

        Raises:
            NotFound: the principal has no such turn.
            TurnNotStored, JournalExpired: the turn's steps are not stored, or not any longer.
            InvalidRequest: the turn has no such finished step, or no such call.
        """
        request = await self._turns.load_request(turn_id, principal)
        return await self.start_turn(build_branch_request(turn_id, request, branch), principal, request_id=request_id)

    async def get_turn(self, turn_id: UUID, principal: Principal) -> FollowedTurn:
        """Return a turn of the principal that was started before.

        Raises:
            NotFound: the principal has no such turn.
        """
        return FollowedTurn(await self._turns.get_turn(turn_id, principal))

    async def get_turn_to_answer(self, turn_id: UUID, principal: Principal) -> TurnHandle:
        """Return a turn whose questions the principal may answer.

        An approval runs a tool with the rights of the turn, so a credential that is limited to some tools answers only
        in turns that it started. A token that comes with the answer serves the turn from then on.

        Raises:
            NotFound: the principal has no such turn.
        """
        await self._runner.planner.connect_user(principal)
        return await self.get_turn(turn_id, limit_to_own_turns(principal))

    def listen_to_turn(self, turn: TurnHandle, *, after: int = 0) -> TurnListener:
        """Read the events after number `after`, and then new events.

        When the last listener of a started turn leaves, the request's `on_disconnect` decides whether it is cancelled.
        """
        return TurnListener(turn, _get_active(turn), self._subscriptions, after=after, is_streamed=True)

    async def follow_to_end(self, turn: FollowedTurn) -> AsyncGenerator[list[JournalEntry]]:
        """Read all events up to the end, from any worker.

        Raises:
            ServerStopping: this worker stops.
            StorageUnavailable, JournalExpired: the turn's end cannot be read.
        """
        after = 0
        while True:
            async with self.listen_to_turn(turn, after=after) as listener:
                async for batch in listener:
                    after = batch[-1].seq
                    yield batch
            if listener.turn_has_ended:
                return
            if listener.close_reason != INPUT_REQUIRED:
                _check_continues(turn, listener)

    def listen_for_client(self, turn: TurnHandle, *, grace_seconds: float | None) -> TurnListener:
        """Read all events, until the turn ends or waits for a person.

        If the client leaves before, and follows the turn no more within `grace_seconds`, the turn is cancelled, on any
        worker. The request needs `on_disconnect="continue"`, or the turn would end at once.
        """
        return ClientListener(turn, _get_active(turn), self._subscriptions, self._presence, grace_seconds=grace_seconds)

    async def wait_for_turn(self, turn: TurnHandle, create_fold: Callable[[], F]) -> F:
        """Fold the turn's events into a result.

        This returns when the turn has ended or waits for a person, or when the fold is complete. After a hand-over to
        another worker the events are read from the journal into a new fold, because some events of the first worker may
        not have been stored.

        Raises:
            ServerStopping: this worker stops.
            StorageUnavailable, TurnNotStored, JournalExpired: the turn's end cannot be read.
        """
        active = _get_active(turn)
        while True:
            fold = create_fold()
            async with TurnListener(turn, active, self._subscriptions, until_input=True) as listener:
                is_complete = await _apply_all(listener, fold)
            if is_complete or listener.turn_has_ended or listener.close_reason == INPUT_REQUIRED:
                return fold
            _check_continues(turn, listener)
            active = None

    async def cancel_turn(self, turn: TurnHandle) -> None:
        """Cancel a turn on any worker, and wait for its end.

        The wait takes at most `CANCEL_TIMEOUT_SECONDS`. A turn that has ended does not change.

        Raises:
            StorageUnavailable: the cancellation is not stored. A turn that runs on this worker stops nevertheless.
        """
        if turn.has_ended:
            return
        with self._subscriptions.subscribe(turn.id) as subscription:  # the journal has the end of every turn
            message = BusMessage(BusKind.CANCEL_TURN, turn.id)
            self._runner.on_cancel(message)
            await self._turns.request_cancel(turn.id)
            self._bus.publish(message)
            self._bus.publish(BusMessage(BusKind.TURN_RUNNABLE, turn.id))
            # The cancellation is stored, so a worker that takes the turn over honours it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_SECONDS):
                    await subscription.wait_until_closed()

    async def list_open_questions(self, turn: TurnHandle) -> list[StoredQuestion]:
        """List the questions of a turn that no one has answered."""
        return [stored for stored in await self._questions.list_for_turn(turn.id) if stored.answer is None]

    async def answer_question(self, turn: TurnHandle, input_id: UUID, answer: Answer) -> None:
        """Store the answer to a question.

        Any worker may then continue the turn.

        Raises:
            NotFound: the turn has no such question.
            InvalidRequest: the answer does not match the question's schema.
            Conflict: the question was already answered.
        """
        question = (await self._questions.get_question(turn.id, input_id)).question
        if answer.action == "accept" and question.schema is not None:
            await check_answer_content(answer.content or {}, question.schema)
        await self._questions.answer_question(turn.id, input_id, answer)
        self._bus.publish(BusMessage(BusKind.TURN_RUNNABLE, turn.id))

    async def resume_after_sign_in(self, server: str, owner: str) -> None:
        """Answer the questions that wait for a sign-in; their turns continue."""
        for turn_id in await self._questions.answer_sign_in(server, owner):
            self._bus.publish(BusMessage(BusKind.TURN_RUNNABLE, turn_id))

    async def stop(self, grace_seconds: float) -> None:
        """Close every listener, and hand over turns that still run.

        Turns have `grace_seconds` to end.
        """
        await self._presence.stop()
        await asyncio.gather(self._queue.stop(), self._subscriptions.stop(), self._runner.stop(grace_seconds))

    def _check_request(self, request: TurnRequest) -> None:
        if len(request.messages) > self._max_messages:
            raise ListTooLong(
                f"messages: at most {self._max_messages} are allowed (MAX_MESSAGES), not {len(request.messages)}.",
                param="messages",
            )
        for index, message in enumerate(request.messages):
            if len(message.text) > self._max_message_chars:
                paths = request.message_paths
                path = paths[index] if index < len(paths) else f"messages.{index}"
                raise self._make_too_long(message.text, f"{path}.content" if "." in path else path)
        if request.webhook_url is not None:
            check_webhook_url(request.webhook_url, self._webhook_hosts)
        if request.origin is not None:
            self._check_branch(request, request.origin)
        if request.conversation_id is not None and not is_new_conversation(request.conversation_id):
            try:
                parse_conversation_id(request.conversation_id)
            except ValueError as error:
                raise InvalidRequest(str(error), param="conversation_id") from None

    def _check_branch(self, request: TurnRequest, origin: TurnOrigin) -> None:
        texts = [("message", up.text) for up in request.follow_ups]
        texts += [(f"results.{call_id[:64]}", result.text) for call_id, result in origin.results.items()]
        for param, text in texts:
            if len(text) > self._max_message_chars:
                raise self._make_too_long(text, param)

    def _make_too_long(self, text: str, param: str) -> TextTooLong:
        return TextTooLong(
            f"A message may have at most {self._max_message_chars:,} characters (MAX_MESSAGE_CHARS), "
            f"not {len(text):,}.",
            param=param,
        )

    async def _find_started(
        self, request: TurnRequest, principal: Principal, *, retry_count: int | None = None
    ) -> TurnHandle | None:
        if request.idempotency_key is not None:
            stored_turn = await self._turns.find_by_idempotency_key(principal, request.idempotency_key)
        elif retry_count and request.request_hash is not None:
            turn_id = self._started_turns.get(request.request_hash)
            if turn_id is not None and (active := self._runner.get(turn_id)) is not None:
                return StartedTurn(active, retries=True)
            stored_turn = await self._turns.find_by_request_hash(principal, request.request_hash)
        else:
            return None
        if stored_turn is None:
            return None
        turn = FollowedTurn(stored_turn)
        if retry_count and not turn.has_ended:
            self._bus.publish(BusMessage(BusKind.TURN_RETRIED, turn.id))
        return turn


def _get_active(turn: TurnHandle) -> ActiveTurn | None:
    return turn.active if isinstance(turn, StartedTurn) else None


async def _apply_all(listener: TurnListener, fold: EventFold) -> bool:
    """Apply all events of the listener; return whether the fold is complete."""
    async for batch in listener:
        for entry in batch:
            if fold.apply(entry.event):
                return True
    return False


def _check_continues(turn: TurnHandle, listener: TurnListener) -> None:
    """Raise unless the turn continues.

    It may continue on another worker, or later on this one.

    Raises:
        ServerStopping: this worker stops.
        StorageRefused, GatewayError: the turn's end cannot be stored.
        StorageUnavailable, TurnNotStored, JournalExpired, GatewayError: the turn's end cannot be read.
    """
    match listener.close_reason:
        case ServerStopping.code | JournalExpired.code | StorageRefused.code | GatewayError.code as code:
            raise error_from_info(ErrorInfo(code=code, message=""))
        case StorageUnavailable.code if not listener.is_local or not turn.is_stored:
            raise StorageUnavailable("The database cannot be reached, so the end of this turn cannot be read.")
        case _ if not turn.is_stored:
            raise TurnNotStored
        case str(code) if not listener.is_local:
            raise error_from_info(ErrorInfo(code=code, message=""))
        case _:
            pass
