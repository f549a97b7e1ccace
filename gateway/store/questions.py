"""Questions of turns and their answers. The audit log records each decision."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import uuid_utils.compat as uuids
from sqlalchemy import text, update
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from gateway.common.redaction import Redactor
from gateway.domain.errors import Conflict, NotFound
from gateway.domain.messages import Answer, PendingInput, Question, StoredQuestion
from gateway.ports.store import QuestionRepository
from gateway.store.audit import make_audit_entry
from gateway.store.database import Database, count_changed_rows
from gateway.store.models import AuditLog, Turn, TurnInput

MAX_EXPIRED = 100
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
        waiting = (
            col(Turn.id) == turn_id,
            col(Turn.worker_id).is_(None),
            col(Turn.status).in_(("running", "waiting")),
        )
        async with self._database.session() as session:
            wake = update(Turn).where(*waiting, answered.exists()).values(status="running")
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
        open_ = select(Turn.id).where(Turn.id == turn_id, col(Turn.status).in_(("running", "waiting")))
        undecided = (col(TurnInput.id) == input_id, col(TurnInput.answer).is_(None), open_.exists())
        decision = update(TurnInput).where(*undecided).values(answer=msgspec.to_builtins(answer))
        waiting = update(Turn).where(col(Turn.id) == turn_id, col(Turn.status) == "waiting").values(status="running")
        async with self._database.session() as session:
            if not await count_changed_rows(session, decision):
                raise Conflict(
                    "This question is already answered, has expired, or its turn has ended.", param="input_id"
                )
            await session.exec(waiting)
            session.add(_decision_entry(turn_id, input_id, answer))

    async def answer_sign_in(self, server: str, owner: str) -> list[UUID]:
        """See `QuestionRepository.answer_sign_in`."""
        asked = col(TurnInput.question)["login"].astext == server
        turns = select(Turn.id).where(col(Turn.status).in_(("running", "waiting")))
        if owner:
            turns = turns.where(Turn.owner == owner)
        answer = Answer("accept", by=owner or "gateway")
        answering = (
            update(TurnInput)
            .where(asked, col(TurnInput.answer).is_(None), col(TurnInput.turn_id).in_(turns))
            .values(answer=msgspec.to_builtins(answer))
            .returning(col(TurnInput.turn_id), col(TurnInput.id))
        )
        async with self._database.session() as session:
            rows = (await (await session.connection()).execute(answering)).all()
            turn_ids = [row[0] for row in rows]
            await session.exec(
                update(Turn).where(col(Turn.id).in_(turn_ids), col(Turn.status) == "waiting").values(status="running")
            )
            session.add_all([_decision_entry(row[0], row[1], answer) for row in rows])
        return turn_ids

    async def expire_overdue(self) -> list[UUID]:
        """See `QuestionRepository.expire_overdue`."""
        overdue = (
            select(TurnInput.id)
            .where(col(TurnInput.answer).is_(None), col(TurnInput.expires_at) < func.now())
            .limit(MAX_EXPIRED)
            .with_for_update(skip_locked=True)
        )
        answer = Answer("expire", by="gateway")
        expiring = (
            update(TurnInput)
            .where(col(TurnInput.id).in_(overdue))
            .values(answer=msgspec.to_builtins(answer))
            .returning(col(TurnInput.turn_id), col(TurnInput.id))
        )
        async with self._database.session() as session:
            rows = (await (await session.connection()).execute(expiring)).all()
            turn_ids = [row[0] for row in rows]
            await session.exec(
                update(Turn).where(col(Turn.id).in_(turn_ids), col(Turn.status) == "waiting").values(status="running")
            )
            session.add_all([_decision_entry(row[0], row[1], answer) for row in rows])
        return turn_ids


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
