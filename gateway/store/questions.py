"""Questions of turns and their answers. The audit log records each decision."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlalchemy import ColumnElement, Select, or_, text, update
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.domain.errors import Conflict, NotFound
from gateway.domain.messages import Answer, PendingInput, Question, StoredQuestion
from gateway.ports.store import QuestionRepository
from gateway.store.audit import make_audit_entry
from gateway.store.database import Database, count_changed_rows
from gateway.store.lists.byte_pages import build_page_query
from gateway.store.models import AuditLog, Turn, TurnInput
from gateway.store.tables.server_tasks import ToolTaskRow
from gateway_runtime.redaction.redactor import Redactor

MAX_EXPIRED = 100
_PAGE = build_page_query(
    "turn_inputs",
    listed="SELECT ctid FROM turn_inputs WHERE turn_id = :turn_id AND id > :after ORDER BY id",
    size="octet_length(t.question::text) + octet_length(coalesce(t.answer::text, ''))",
    columns="t.id",
)
_IS_OPEN = col(Turn.status).in_(("running", "waiting"))
# The same fence as that of the journal's statements.
_REQUIRE_OWNERSHIP = text(
    "SELECT coalesce((SELECT id FROM turns WHERE id = :turn_id AND worker_id = :worker_id AND epoch = :epoch"
    " FOR SHARE), refuse_stale_write(:turn_id))"
)


class QuestionStore(QuestionRepository):
    """See `QuestionRepository`.

    `lifetime` is the time until a question expires; `worker_id` owns the asking turns.
    """

    def __init__(
        self, database: Database, worker_id: UUID, *, lifetime: timedelta, redactor: Redactor | None = None
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._redactor = redactor or Redactor()
        self._lifetime = lifetime

    async def save_questions(
        self, turn_id: UUID, call_id: str, pending_input: PendingInput, *, epoch: int
    ) -> list[tuple[StoredQuestion, datetime]]:
        """See `QuestionRepository.save_questions`."""
        expires_at = datetime.now(UTC) + self._lifetime
        stored = [
            StoredQuestion(UUID(int=uuids.uuid7().int), call_id, q, pending_input.state)
            for q in pending_input.questions
        ]
        async with self._database.session() as session:
            await self._require_ownership(session, turn_id, epoch)
            for asked in stored:
                question = self._redactor.redact_strings(msgspec.to_builtins(asked.question))
                session.add(
                    TurnInput(
                        id=asked.id,
                        turn_id=turn_id,
                        call_id=call_id,
                        question=question,
                        state=asked.state,
                        expires_at=expires_at,
                    )
                )
        return [(asked, expires_at) for asked in stored]

    async def _require_ownership(self, session: AsyncSession, turn_id: UUID, epoch: int) -> None:
        fence = {"turn_id": turn_id, "worker_id": self._worker_id, "epoch": epoch}
        await (await session.connection()).execute(_REQUIRE_OWNERSHIP, fence)

    async def list_for_turn(self, turn_id: UUID) -> list[StoredQuestion]:
        """See `QuestionRepository.list_for_turn`."""
        query = select(TurnInput).where(TurnInput.turn_id == turn_id).order_by(col(TurnInput.id))
        async with self._database.session() as session:
            return [_stored_question(row) for row in (await session.exec(query)).all()]

    async def iterate_for_turn(self, turn_id: UUID) -> AsyncIterator[StoredQuestion]:
        """Read the questions of a turn in bounded pages."""
        after = UUID(int=0)
        while rows := await self._database.fetch_rows(_PAGE, turn_id=turn_id, after=after):
            query = select(TurnInput).where(col(TurnInput.id).in_([row[1] for row in rows])).order_by(col(TurnInput.id))
            async with self._database.session() as session:
                questions = [_stored_question(row) for row in (await session.exec(query)).all()]
            for question in questions:
                yield question
            after = rows[-1][1]

    async def get_answer(self, turn_id: UUID, input_id: UUID) -> Answer | None:
        """See `QuestionRepository.get_answer`."""
        return (await self.get_question(turn_id, input_id)).answer

    async def expire_inline(self, turn_id: UUID, *, epoch: int) -> None:
        """See `QuestionRepository.expire_inline`."""
        is_inline = (col(TurnInput.turn_id) == turn_id, col(TurnInput.question)["held"].astext == "true")
        answer = Answer("expire", by="gateway")
        expiration = (
            update(TurnInput)
            .where(*is_inline, col(TurnInput.answer).is_(None))
            .values(answer=msgspec.to_builtins(answer))
            .returning(col(TurnInput.id))
        )
        async with self._database.session() as session:
            await self._require_ownership(session, turn_id, epoch)
            input_ids = (await (await session.connection()).execute(expiration)).scalars().all()
            session.add_all([_decision_entry(turn_id, input_id, answer) for input_id in input_ids])

    async def wake_if_answered(self, turn_id: UUID, open_inputs: list[UUID]) -> bool:
        """See `QuestionRepository.wake_if_answered`."""
        answered = select(TurnInput.id).where(col(TurnInput.id).in_(open_inputs), col(TurnInput.answer).is_not(None))
        settled = select(ToolTaskRow.id).where(
            col(ToolTaskRow.id).in_(open_inputs), col(ToolTaskRow.settled_at).is_not(None)
        )
        waiting = (col(Turn.id) == turn_id, col(Turn.worker_id).is_(None), _IS_OPEN)
        async with self._database.session() as session:
            is_due = or_(col(Turn.cancel_requested), answered.exists(), settled.exists())
            wake = update(Turn).where(*waiting, is_due).values(status="running", waits_for_task=False)
            return bool(await count_changed_rows(session, wake))

    async def get_question(self, turn_id: UUID, input_id: UUID) -> StoredQuestion:
        """See `QuestionRepository.get_question`."""
        query = select(TurnInput).where(TurnInput.id == input_id, TurnInput.turn_id == turn_id)
        async with self._database.session() as session:
            row = (await session.exec(query)).first()
        if row is None:
            raise NotFound(f"This turn has no question {str(input_id)!r}.", param="input_id")
        return _stored_question(row)

    async def answer_question(self, turn_id: UUID, input_id: UUID, answer: Answer) -> None:
        """See `QuestionRepository.answer_question`."""
        answer = msgspec.structs.replace(answer, content=self._redactor.redact_value(answer.content))
        undecided = (col(TurnInput.id) == input_id, col(TurnInput.answer).is_(None))
        async with self._database.session() as session:
            turn_ids = await _lock_turns(session, select(Turn.id).where(Turn.id == turn_id, _IS_OPEN))
            if not await _answer_questions(session, answer, turn_ids, *undecided):
                raise Conflict(
                    "This question is already answered, has expired, or its turn has ended.", param="input_id"
                )

    async def answer_sign_in(self, server: str, owner: str) -> list[UUID]:
        """See `QuestionRepository.answer_sign_in`."""
        asked = col(TurnInput.question)["login"].astext == server
        undecided = (asked, col(TurnInput.answer).is_(None))
        turns = select(Turn.id).where(_IS_OPEN, col(Turn.id).in_(select(TurnInput.turn_id).where(*undecided)))
        if owner:
            turns = turns.where(Turn.owner == owner)
        answer = Answer("accept", by=owner or "gateway")
        async with self._database.session() as session:
            return await _answer_questions(session, answer, await _lock_turns(session, turns), *undecided)

    async def expire_overdue(self) -> list[UUID]:
        """See `QuestionRepository.expire_overdue`."""
        overdue = (col(TurnInput.answer).is_(None), col(TurnInput.expires_at) < func.now())
        turns = select(Turn.id).where(col(Turn.id).in_(select(TurnInput.turn_id).where(*overdue).limit(MAX_EXPIRED)))
        async with self._database.session() as session:
            turn_ids = await _lock_turns(session, turns, skip_locked=True)
            return await _answer_questions(session, Answer("expire", by="gateway"), turn_ids, *overdue)


async def _lock_turns(session: AsyncSession, turns: Select[Any], *, skip_locked: bool = False) -> list[UUID]:
    """Lock the turns, and return their ids.

    An answer locks its turn before its question, as the writes of a turn do. Without the lock, a turn that is being
    suspended may see no answer, and the answer no suspended turn: nobody would continue it.
    """
    locked = turns.order_by(col(Turn.id)).with_for_update(key_share=True, skip_locked=skip_locked, of=Turn)
    return list((await (await session.connection()).execute(locked)).scalars())


async def _answer_questions(
    session: AsyncSession, answer: Answer, turn_ids: list[UUID], *conditions: ColumnElement[bool]
) -> list[UUID]:
    """Store the answer to questions of locked turns.

    Return the turns that continue.
    """
    answering = (
        update(TurnInput)
        .where(col(TurnInput.turn_id).in_(turn_ids), *conditions)
        .values(answer=msgspec.to_builtins(answer))
        .returning(col(TurnInput.turn_id), col(TurnInput.id))
    )
    rows = (await (await session.connection()).execute(answering)).all()
    answered = [row[0] for row in rows]
    waiting = (col(Turn.id).in_(answered), col(Turn.status) == "waiting")
    await session.exec(update(Turn).where(*waiting).values(status="running"))
    session.add_all([_decision_entry(row[0], row[1], answer) for row in rows])
    return answered


def _stored_question(row: TurnInput) -> StoredQuestion:
    return StoredQuestion(
        id=row.id,
        call_id=row.call_id,
        question=msgspec.convert(row.question, Question),
        state=row.state,
        answer=None if row.answer is None else msgspec.convert(row.answer, Answer),
    )


def _decision_entry(turn_id: UUID, input_id: UUID, answer: Answer) -> AuditLog:
    detail = {"input_id": str(input_id), "content": answer.content}
    return make_audit_entry(answer.by or "unknown", f"input.{answer.action}", f"turn {turn_id}", detail)
