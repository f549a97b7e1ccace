"""Commits of the journal, and waits for answers during a call."""

import time
from asyncio import Future
from functools import partial
from typing import Any
from uuid import UUID

from gateway.domain.messages import Answer, TurnOutcome, TurnRecord
from gateway.observation import families as f
from gateway.observation import names as n
from gateway.observation.turns import record_question
from gateway.ports.journal import EventSource
from gateway.ports.observer import Observer
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway.store.questions import QuestionStore


class ObservedJournal(PostgresJournal):
    """The journal with a span for each awaited commit.

    Deltas take the inherited way, so that they cost nothing more.
    """

    def __init__(self, *arguments: Any, observer: Observer, **options: Any) -> None:
        super().__init__(*arguments, **options, on_commit=self._record_commit)
        self._observer = observer

    def measure_queue(self) -> tuple[int, float]:
        """Return the number of waiting writes, and the oldest one's age."""
        writes = self._queue.list_writes()
        return len(writes), self._now() - writes[0].submitted_at if writes else 0.0

    @staticmethod
    def _now() -> float:
        from asyncio import get_running_loop

        return get_running_loop().time()

    def _record_commit(self, writes: int, seconds: float, succeeded: bool) -> None:
        if not succeeded:
            self._observer.increase_counter(f.COMMIT_FAILURES, 1)
            return
        self._observer.record_value(f.COMMITS, seconds)
        self._observer.record_value(f.BATCHES, writes)

    async def begin_turn(self, turn: TurnRecord, log: EventSource) -> None:
        """See `Journal.begin_turn`."""
        with self._observer.open_span("commit", {n.COMMIT: "begin", n.TURN: str(turn.id)}):
            await super().begin_turn(turn, log)

    def finish_turn(self, log: EventSource, outcome: TurnOutcome) -> Future[None]:
        """See `Journal.finish_turn`."""
        return self._watch("finish", super().finish_turn(log, outcome))

    def suspend_turn(self, log: EventSource, open_inputs: list[UUID]) -> Future[None]:
        """See `Journal.suspend_turn`."""
        return self._watch("suspend", super().suspend_turn(log, open_inputs))

    def _watch(self, kind: str, done: Future[None]) -> Future[None]:
        record = partial(self._observer.record_span, "commit", {n.COMMIT: kind}, started_at=time.time())
        done.add_done_callback(lambda _: record())
        return done


class ObservedQuestions(QuestionStore):
    """Questions whose answers during a call are recorded."""

    def __init__(self, *arguments: Any, observer: Observer, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._observer = observer

    async def get_answer(self, turn_id: UUID, input_id: UUID) -> Answer | None:
        """See `QuestionRepository.get_answer`."""
        answer = await super().get_answer(turn_id, input_id)
        if answer is not None:
            record_question(self._observer, input_id, "question")
        return answer
