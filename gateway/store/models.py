"""The gateway's tables. Alembic makes them; `alembic check` in the tests keeps the two alike."""

from datetime import datetime
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Computed,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.types import TypeEngine
from sqlmodel import Field, SQLModel

from gateway.domain.messages import JsonObject

T = TypeVar("T")

# A tsvector holds at most a megabyte: what lies beyond the first 50,000 characters of each is kept but not searched.
SEARCH_TEXT = "to_tsvector('simple'::regconfig, \"left\"(prompt, 50000) || ' ' || \"left\"(response, 50000))"


def _created_at() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False, server_default=func.now())


def _when() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=True)


def _figure(kind: type[TypeEngine[T]]) -> Column[T]:
    return Column(kind, nullable=False, server_default="0")


def _json(*, nullable: bool = True) -> Column[Any]:
    return Column(JSONB, nullable=nullable)


class _Table(SQLModel):
    """Lets a table be named by a plain string, which the declaration in `SQLModel` does not."""

    __tablename__: ClassVar[Any]


class Conversation(_Table, table=True):
    """Turns in order, owned by one user."""

    __tablename__ = "conversations"
    __table_args__ = (Index("ix_conversations_owner", "owner", text("id DESC")),)

    id: UUID = Field(primary_key=True)
    owner: str = Field(sa_type=Text)
    title: str = Field(default="", sa_type=Text)
    created_at: datetime | None = Field(default=None, sa_column=_created_at())
    updated_at: datetime | None = Field(default=None, sa_column=_created_at())


class Turn(_Table, table=True):
    """One user request and all that it took to answer it. `status`: running, waiting, completed, failed, cancelled.

    `parent_id` is the turn whose history this one goes on from; `busy_conversation_id`, unique, its conversation while
    it has not ended, unless it is a branch; `sent_messages` how many of its messages came with the request;
    `cached`: its answer is an earlier turn's.
    """

    __tablename__ = "turns"
    __table_args__ = (
        Index("ix_turns_owner", "owner", text("id DESC")),
        Index("ix_turns_conversation", "conversation_id", "id"),
        Index("ix_turns_running", "worker_id", postgresql_where=text("status = 'running'")),
        Index("ix_turns_parent", "parent_id"),
        Index("ux_turns_busy", "busy_conversation_id", unique=True),
        Index("ux_turns_idempotency", "owner", "idempotency_key", unique=True),
        Index("ix_turns_search", "search", postgresql_using="gin"),
    )

    id: UUID = Field(primary_key=True)
    conversation_id: UUID | None = Field(
        default=None, sa_column=Column(ForeignKey("conversations.id", ondelete="CASCADE"), nullable=True)
    )
    parent_id: UUID | None = None
    busy_conversation_id: UUID | None = None
    owner: str = Field(sa_type=Text)
    user_label: str | None = Field(default=None, sa_type=Text)
    worker_id: UUID | None = None
    status: str = Field(sa_type=Text)
    prompt: str = Field(sa_type=Text)
    response: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    messages: list[JsonObject] = Field(sa_column=_json(nullable=False))
    sent_messages: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    model_name: str = Field(sa_type=Text)
    parameters: JsonObject = Field(sa_column=_json(nullable=False))
    options: JsonObject = Field(sa_column=_json(nullable=False))
    finish_reason: str | None = Field(default=None, sa_type=Text)
    usage: JsonObject | None = Field(default=None, sa_column=_json())
    cost_usd: float | None = None
    cached: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false")))
    steps: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    error: JsonObject | None = Field(default=None, sa_column=_json())
    request_id: str | None = Field(default=None, sa_type=Text)
    idempotency_key: str | None = Field(default=None, sa_type=Text)
    cancel_requested: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false"))
    )
    created_at: datetime | None = Field(default=None, sa_column=_created_at())
    completed_at: datetime | None = Field(default=None, sa_column=_when())
    caller: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    first_token_ms: float | None = None
    duration_ms: float | None = None
    search: str | None = Field(default=None, sa_column=Column(TSVECTOR, Computed(SEARCH_TEXT, persisted=True)))

    @property
    def store(self) -> bool:
        """Whether more is kept than figures."""
        return bool(self.options.get("store", True))


class ToolCallRow(_Table, table=True):
    """What a tool was asked and what came of it: written before the call runs, completed after."""

    __tablename__ = "tool_calls"
    __table_args__ = (Index("ix_tool_calls_started", "started_at"),)

    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True))
    call_id: str = Field(primary_key=True, sa_type=Text)
    step: int
    server: str | None = Field(default=None, sa_type=Text)
    tool: str = Field(sa_type=Text)
    arguments: Any = Field(sa_column=_json())
    outcome: str | None = Field(default=None, sa_type=Text)
    content: list[JsonObject] | None = Field(default=None, sa_column=_json())
    structured: Any = Field(default=None, sa_column=_json())
    started_at: datetime | None = Field(default=None, sa_column=_created_at())
    duration_ms: float | None = None


class TurnInput(_Table, table=True):
    """A question of a turn that waits for a person, with the asking server's state, and the answer."""

    __tablename__ = "turn_inputs"
    __table_args__ = (
        Index("ix_turn_inputs_turn", "turn_id"),
        Index("ix_turn_inputs_open", "expires_at", postgresql_where=text("answer IS NULL")),
    )

    id: UUID = Field(primary_key=True)
    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), nullable=False))
    call_id: str = Field(sa_type=Text)
    question: JsonObject = Field(sa_column=_json(nullable=False))
    state: str | None = Field(default=None, sa_type=Text)
    answer: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    created_at: datetime | None = Field(default=None, sa_column=_created_at())
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class TurnUsage(_Table, table=True):
    """What an ended turn has used up: what budgets and reports are reckoned from. It stays when the turn is deleted.

    Times in seconds, as the model's server reported them.
    """

    __tablename__ = "turn_usage"
    __table_args__ = (
        Index("ix_turn_usage_owner", "owner", "at", postgresql_include=["total_tokens", "cost_usd"]),
        Index(
            "ix_turn_usage_key",
            "key",
            "at",
            postgresql_include=["total_tokens", "cost_usd"],
            postgresql_where=text("key IS NOT NULL"),
        ),
        Index("ix_turn_usage_at", "at"),
    )

    turn_id: UUID = Field(primary_key=True)
    owner: str = Field(sa_type=Text)
    key: str | None = Field(default=None, sa_type=Text)
    model_name: str = Field(sa_type=Text)
    status: str = Field(sa_type=Text)
    prompt_tokens: int = Field(sa_type=BigInteger)
    completion_tokens: int = Field(sa_type=BigInteger)
    total_tokens: int = Field(sa_type=BigInteger)
    cached_tokens: int = Field(default=0, sa_column=_figure(BigInteger))
    reasoning_tokens: int = Field(default=0, sa_column=_figure(BigInteger))
    queue_time: float = Field(default=0.0, sa_column=_figure(Float))
    model_time: float = Field(default=0.0, sa_column=_figure(Float))
    generation_time: float = Field(default=0.0, sa_column=_figure(Float))
    steps: int = Field(default=0, sa_column=_figure(Integer))
    conversation_id: UUID | None = None
    cached: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false")))
    cost_usd: float | None = None
    error_code: str | None = Field(default=None, sa_type=Text)
    at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class BudgetHold(_Table, table=True):
    """What a turn that has not ended has used up, and what is set aside for its step, where someone has a budget.

    It counts while the turn has not ended; then `turn_usage` has it.
    """

    __tablename__ = "budget_holds"
    __table_args__ = (Index("ix_budget_holds_owner", "owner"),)

    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True))
    owner: str = Field(sa_type=Text)
    key: str | None = Field(default=None, sa_type=Text)
    tokens: int = Field(sa_type=BigInteger)
    usd: float
    step_tokens: int = Field(sa_type=BigInteger)
    step_usd: float


class Feedback(_Table, table=True):
    """What its owner thinks of a turn: `rating` up or down, and why."""

    __tablename__ = "turn_feedback"
    __table_args__ = (Index("ix_turn_feedback_owner", "owner", "at"), Index("ix_turn_feedback_at", "at"))

    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True))
    owner: str = Field(sa_type=Text)
    rating: str = Field(sa_type=Text)
    comment: str | None = Field(default=None, sa_type=Text)
    at: datetime | None = Field(default=None, sa_column=_created_at())


class CachedResponse(_Table, table=True):
    """A turn whose answer may be given again to the same request of its owner. `key` is the request's hash."""

    __tablename__ = "cached_responses"
    __table_args__ = (
        Index("ix_cached_responses_turn", "turn_id"),
        Index("ix_cached_responses_kept", "kept_at"),
        Index("ix_cached_responses_expires", "expires_at"),
    )

    owner: str = Field(primary_key=True, sa_type=Text)
    key: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), nullable=False))
    kept_at: datetime | None = Field(default=None, sa_column=_created_at())
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class AuditLog(_Table, table=True):
    """Who did what, when. A trigger forbids to change or delete a row."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_subject", "subject"),
        Index("ix_audit_log_actor", "actor", text("id DESC")),
        Index("ix_audit_log_action", "action", text("id DESC")),
    )

    id: UUID = Field(primary_key=True)
    at: datetime | None = Field(default=None, sa_column=_created_at())
    actor: str = Field(sa_type=Text)
    action: str = Field(sa_type=Text)
    subject: str = Field(sa_type=Text)
    detail: JsonObject = Field(sa_column=_json(nullable=False))


class ApiKey(_Table, table=True):
    """A key for the API: the SHA-256 of it, and the beginning by which people know it. Rows stay when it is revoked.

    A key is 256 random bits, so nobody can guess it from a fast hash: a slow one would only make each request dear.
    `scopes`, `models`, `servers` and `tools` are lists; null allows all. `created_by`: a user.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("ux_api_keys_hash", "hash", unique=True),
        Index("ux_api_keys_prefix", "prefix", unique=True),
        Index("ix_api_keys_owner", "owner", text("id DESC")),
    )

    id: UUID = Field(primary_key=True)
    hash: str = Field(sa_type=Text)
    prefix: str = Field(sa_type=Text)
    name: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    owner: str = Field(sa_type=Text)
    role: str = Field(sa_type=Text)
    scopes: list[str] | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    models: list[str] | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    servers: list[str] | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    tools: list[str] | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    budget: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    limits: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    created_by: str = Field(sa_type=Text)
    created_at: datetime | None = Field(default=None, sa_column=_created_at())
    expires_at: datetime | None = Field(default=None, sa_column=_when())
    last_used_at: datetime | None = Field(default=None, sa_column=_when())
    revoked_at: datetime | None = Field(default=None, sa_column=_when())


class McpServerRow(_Table, table=True):
    """A server added at run time; or, without `config`, one of the file that was switched off or on."""

    __tablename__ = "mcp_servers"

    name: str = Field(primary_key=True, sa_type=Text)
    config: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    disabled: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false")))
    changed_by: str = Field(sa_type=Text)
    changed_at: datetime | None = Field(default=None, sa_column=_created_at())


class McpToolRow(_Table, table=True):
    """A tool's definition as it was first seen or last approved; `changed_to` is what it is now, if that differs."""

    __tablename__ = "mcp_tools"

    server: str = Field(primary_key=True, sa_type=Text)
    tool: str = Field(primary_key=True, sa_type=Text)
    definition: JsonObject = Field(sa_column=_json(nullable=False))
    changed_to: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    first_seen_at: datetime | None = Field(default=None, sa_column=_created_at())
    changed_at: datetime | None = Field(default=None, sa_column=_when())


class OAuthGrant(_Table, table=True):
    """With what an owner ("": the gateway, for all) gets into a protected server at this address, encrypted."""

    __tablename__ = "oauth_grants"

    server: str = Field(primary_key=True, sa_type=Text)
    owner: str = Field(primary_key=True, sa_type=Text)
    url: str = Field(primary_key=True, sa_type=Text)
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    changed_at: datetime | None = Field(default=None, sa_column=_created_at())


class OAuthLogin(_Table, table=True):
    """A sign-in that was offered; tickets and states are kept as hashes. `outcome`: "" is success."""

    __tablename__ = "oauth_logins"

    ticket: str = Field(primary_key=True, sa_type=Text)
    login: JsonObject = Field(sa_column=_json(nullable=False))
    state: str | None = Field(default=None, sa_type=Text)
    callback: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    outcome: str | None = Field(default=None, sa_type=Text)
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class TurnEvents(_Table, table=True):
    """The journal: consecutive events `first_seq … last_seq` of a turn, one JSON object a line of `payload`."""

    __tablename__ = "turn_events"

    turn_id: UUID = Field(primary_key=True)
    first_seq: int = Field(primary_key=True)
    last_seq: int
    payload: str = Field(sa_type=Text)


class Worker(_Table, table=True):
    """A gateway process that runs turns, and when it was last heard of."""

    __tablename__ = "workers"

    id: UUID = Field(primary_key=True)
    host: str = Field(sa_type=Text)
    pid: int = Field(sa_type=BigInteger)
    started_at: datetime | None = Field(default=None, sa_column=_created_at())
    seen_at: datetime | None = Field(default=None, sa_column=_created_at())
