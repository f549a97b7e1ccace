"""The gateway's tables. A test compares them with Alembic's migrations."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlmodel import Field

from gateway.domain.messages import JsonObject
from gateway.store.tables.columns import Table, created_at_column, json_column, number_column, time_column


class Conversation(Table, table=True):
    """Turns of one user. `external_id` and `notes` are the client's."""

    __tablename__ = "conversations"
    __table_args__ = (
        Index("ix_conversations_owner", "owner", text("id DESC")),
        Index("ux_conversations_external_id", "owner", "external_id", unique=True),
    )

    id: UUID = Field(primary_key=True)
    owner: str = Field(sa_type=Text)
    title: str = Field(default="", sa_type=Text)
    external_id: str | None = Field(default=None, sa_type=Text)
    notes: JsonObject | None = Field(default=None, sa_column=json_column(none_as_null=True))
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
    updated_at: datetime | None = Field(default=None, sa_column=created_at_column())


class Turn(Table, table=True):
    """A user request and its outcome. `status`: running, waiting, completed, failed, cancelled.

    `position` orders a conversation's turns, after those without one. `parent_id` is the turn before this, `origin_id`
    that of a fork or replay. `busy_conversation_id` is unique: that of an unfinished turn that is no branch. `epoch`
    counts claims: an older write is refused. `attempts` counts workers that died since the last completed step.
    `waits_for_task`: no worker runs it until a task of a server is settled.
    `search` has the words of PostgreSQL's parser, from a trigger, or the application's terms if `has_terms`.
    """

    __tablename__ = "turns"
    __table_args__ = (
        Index("ix_turns_owner", "owner", text("id DESC")),
        Index("ix_turns_conversation", "conversation_id", "id"),  # for release 0.1.0
        Index("ix_turns_position", "conversation_id", text("position NULLS FIRST"), "id"),
        Index("ix_turns_running", "worker_id", postgresql_where=text("status = 'running'")),
        Index("ix_turns_parent", "parent_id"),
        Index("ux_turns_busy", "busy_conversation_id", unique=True),
        Index("ux_turns_idempotency", "owner", "idempotency_key", unique=True),
        Index(
            "ix_turns_period_search",
            text("(ARRAY[owner])"),
            text("(ARRAY[owner || left(id::text, 4)])"),
            "search",
            postgresql_using="gin",
        ),
        Index("ix_turns_without_terms", "owner", text("id DESC"), postgresql_where=text("NOT has_terms")),
    )

    id: UUID = Field(primary_key=True)
    conversation_id: UUID | None = Field(
        default=None, sa_column=Column(ForeignKey("conversations.id", ondelete="CASCADE"), nullable=True)
    )
    position: int | None = Field(
        default=None,
        sa_column=Column(BigInteger, nullable=True, server_default=text("nextval('turn_positions'::regclass)")),
    )
    parent_id: UUID | None = None
    busy_conversation_id: UUID | None = None
    origin_id: UUID | None = None
    is_replay: bool = Field(default=False, sa_column=number_column(Boolean, "false"))
    history_summary: JsonObject | None = Field(default=None, sa_column=json_column())
    owner: str = Field(sa_type=Text)
    user_label: str | None = Field(default=None, sa_type=Text)
    worker_id: UUID | None = None
    epoch: int = Field(default=0, sa_column=number_column(Integer))
    attempts: int = Field(default=0, sa_column=number_column(Integer))
    waits_for_task: bool = Field(default=False, sa_column=number_column(Boolean, "false"))
    status: str = Field(sa_type=Text)
    prompt: str = Field(sa_type=Text)
    response: str = Field(default="", sa_column=Column(Text, nullable=False, server_default=""))
    messages: list[JsonObject] = Field(sa_column=json_column(nullable=False))
    sent_messages: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    model_name: str = Field(sa_type=Text)
    parameters: JsonObject = Field(sa_column=json_column(nullable=False))
    options: JsonObject = Field(sa_column=json_column(nullable=False))
    finish_reason: str | None = Field(default=None, sa_type=Text)
    usage: JsonObject | None = Field(default=None, sa_column=json_column())
    cost_usd: float | None = None
    cached: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false")))
    steps: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    error: JsonObject | None = Field(default=None, sa_column=json_column())
    request_id: str | None = Field(default=None, sa_type=Text)
    idempotency_key: str | None = Field(default=None, sa_type=Text)
    request_hash: str | None = Field(default=None, sa_type=Text)
    trace_context: dict[str, str] | None = Field(
        default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True)
    )
    cancel_requested: bool = Field(default=False, sa_column=number_column(Boolean, "false"))
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
    completed_at: datetime | None = Field(default=None, sa_column=time_column())
    caller: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    first_token_ms: float | None = None
    duration_ms: float | None = None
    search: str | None = Field(default=None, sa_column=Column(TSVECTOR, nullable=True))
    has_terms: bool = Field(default=False, sa_column=number_column(Boolean, "false"))

    @property
    def store(self) -> bool:
        """True if messages and events are stored, not only statistics."""
        return bool(self.options.get("store", True))


class ConversationWaiter(Table, table=True):
    """A request that waits for its conversation; its id is its ticket.

    It counts until `expires_at`, while its worker has a lease.
    """

    __tablename__ = "conversation_waiters"
    __table_args__ = (Index("ix_conversation_waiters", "conversation_id", "id"),)

    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    conversation_id: UUID
    worker_id: UUID
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class ToolCallRow(Table, table=True):
    """A tool call and its result.

    The row is written before the call runs, and completed after it. `source` is set if the tool was not called.
    """

    __tablename__ = "tool_calls"
    __table_args__ = (Index("ix_tool_calls_started", "started_at"),)

    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True))
    call_id: str = Field(primary_key=True, sa_type=Text)
    step: int
    server: str | None = Field(default=None, sa_type=Text)
    tool: str = Field(sa_type=Text)
    arguments: Any = Field(sa_column=json_column())
    outcome: str | None = Field(default=None, sa_type=Text)
    content: list[JsonObject] | None = Field(default=None, sa_column=json_column())
    structured: Any = Field(default=None, sa_column=json_column())
    started_at: datetime | None = Field(default=None, sa_column=created_at_column())
    duration_ms: float | None = None
    source: str | None = Field(default=None, sa_type=Text)


class TurnInput(Table, table=True):
    """A question to a person.

    The row also has the MCP server's state and the answer.
    """

    __tablename__ = "turn_inputs"
    __table_args__ = (
        Index("ix_turn_inputs_turn", "turn_id"),
        Index("ix_turn_inputs_open", "expires_at", postgresql_where=text("answer IS NULL")),
    )

    id: UUID = Field(primary_key=True)
    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), nullable=False))
    call_id: str = Field(sa_type=Text)
    question: JsonObject = Field(sa_column=json_column(nullable=False))
    state: str | None = Field(default=None, sa_type=Text)
    answer: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class TurnUsage(Table, table=True):
    """Usage of an ended turn, for budgets and reports.

    The row stays when the turn is deleted. Times are in seconds, as reported by the model's server. A row with an
    `endpoint` is that of a request that was passed on, which is no turn.
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
        Index("ix_turn_usage_error", "error_code", "at", postgresql_where=text("error_code IS NOT NULL")),
    )

    turn_id: UUID = Field(primary_key=True)
    owner: str = Field(sa_type=Text)
    key: str | None = Field(default=None, sa_type=Text)
    model_name: str = Field(sa_type=Text)
    status: str = Field(sa_type=Text)
    prompt_tokens: int = Field(sa_type=BigInteger)
    completion_tokens: int = Field(sa_type=BigInteger)
    total_tokens: int = Field(sa_type=BigInteger)
    cached_tokens: int = Field(default=0, sa_column=number_column(BigInteger))
    reasoning_tokens: int = Field(default=0, sa_column=number_column(BigInteger))
    queue_time: float = Field(default=0.0, sa_column=number_column(Float))
    model_time: float = Field(default=0.0, sa_column=number_column(Float))
    generation_time: float = Field(default=0.0, sa_column=number_column(Float))
    steps: int = Field(default=0, sa_column=number_column(Integer))
    conversation_id: UUID | None = None
    cached: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false")))
    cost_usd: float | None = None
    error_code: str | None = Field(default=None, sa_type=Text)
    endpoint: str | None = Field(default=None, sa_type=Text)
    at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class BudgetHold(Table, table=True):
    """Usage and reservation of a running turn with a budget.

    The reservation is for the turn's current step. A row counts until its turn ends; then `turn_usage` holds the usage.
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


class Feedback(Table, table=True):
    """An owner's `rating` (up or down) of a turn, and comment."""

    __tablename__ = "turn_feedback"
    __table_args__ = (Index("ix_turn_feedback_owner", "owner", "at"), Index("ix_turn_feedback_at", "at"))

    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True))
    owner: str = Field(sa_type=Text)
    rating: str = Field(sa_type=Text)
    comment: str | None = Field(default=None, sa_type=Text)
    at: datetime | None = Field(default=None, sa_column=created_at_column())


class CachedResponse(Table, table=True):
    """A turn whose answer may be reused for its owner's equal requests.

    `key` is the hash of the request.
    """

    __tablename__ = "cached_responses"
    __table_args__ = (
        Index("ix_cached_responses_turn", "turn_id"),
        Index("ix_cached_responses_kept", "kept_at"),
        Index("ix_cached_responses_expires", "expires_at"),
    )

    owner: str = Field(primary_key=True, sa_type=Text)
    key: bytes = Field(sa_column=Column(LargeBinary, primary_key=True))
    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), nullable=False))
    kept_at: datetime | None = Field(default=None, sa_column=created_at_column())
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class AuditLog(Table, table=True):
    """Entry of the audit log, which triggers protect, number and chain."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_log_subject", "subject"),
        Index("ix_audit_log_actor", "actor", text("id DESC")),
        Index("ix_audit_log_action", "action", text("id DESC")),
        Index("ux_audit_log_seq", "seq", unique=True),
    )

    id: UUID = Field(primary_key=True)
    at: datetime | None = Field(default=None, sa_column=created_at_column())
    actor: str = Field(sa_type=Text)
    action: str = Field(sa_type=Text)
    subject: str = Field(sa_type=Text)
    detail: JsonObject = Field(sa_column=json_column(nullable=False))
    seq: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    hash: str | None = Field(default=None, sa_type=Text)


class ApiKey(Table, table=True):
    """Hash, prefix and permissions of an API key.

    The hash is SHA-256: a fast hash suffices for 256 random bits. See docs/adr/0020. The prefix identifies the key. A
    revoked key keeps its row. `scopes`, `models`, `servers` and `tools` are lists; null allows everything, as does no
    `toolset`. `created_by` is a user, `made_with` the prefix of the key that made this one.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("ux_api_keys_hash", "hash", unique=True),
        Index("ux_api_keys_prefix", "prefix", unique=True),
        Index("ix_api_keys_owner", "owner", text("id DESC")),
        Index("ix_api_keys_made_with", "made_with"),
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
    gateway_tools: str | None = Field(default=None, sa_type=Text)
    code: str | None = Field(default=None, sa_type=Text)
    toolset: str | None = Field(default=None, sa_type=Text)
    created_by: str = Field(sa_type=Text)
    made_with: str | None = Field(default=None, sa_type=Text)
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
    expires_at: datetime | None = Field(default=None, sa_column=time_column())
    last_used_at: datetime | None = Field(default=None, sa_column=time_column())
    revoked_at: datetime | None = Field(default=None, sa_column=time_column())


class McpServerRow(Table, table=True):
    """An MCP server that was added or switched at run time.

    A row without `config` is a file's server that was disabled or enabled.
    """

    __tablename__ = "mcp_servers"

    name: str = Field(primary_key=True, sa_type=Text)
    config: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    disabled: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=text("false")))
    changed_by: str = Field(sa_type=Text)
    changed_at: datetime | None = Field(default=None, sa_column=created_at_column())
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())


class McpToolRow(Table, table=True):
    """The first seen or last approved definition of a tool.

    The name "" has the instructions of a server. `definition` has the fields that release 0.1.0 compares, `details` the
    others, or NULL if that release has stored the row. `changed_to` and `details_changed_to` are the current
    definition, if it differs or was never approved.
    """

    __tablename__ = "mcp_tools"

    server: str = Field(primary_key=True, sa_type=Text)
    tool: str = Field(primary_key=True, sa_type=Text)
    definition: JsonObject = Field(sa_column=json_column(nullable=False))
    details: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    changed_to: JsonObject | None = Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=True))
    details_changed_to: JsonObject | None = Field(default=None, sa_column=json_column(none_as_null=True))
    first_seen_at: datetime | None = Field(default=None, sa_column=created_at_column())
    changed_at: datetime | None = Field(default=None, sa_column=time_column())


class OAuthGrant(Table, table=True):
    """The encrypted OAuth grant of an owner for an MCP server.

    The primary key includes the server's address. The owner "" is the gateway. `challenge` asks for further scopes.
    """

    __tablename__ = "oauth_grants"

    server: str = Field(primary_key=True, sa_type=Text)
    owner: str = Field(primary_key=True, sa_type=Text)
    url: str = Field(primary_key=True, sa_type=Text)
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    challenge: str | None = Field(default=None, sa_type=Text)
    changed_at: datetime | None = Field(default=None, sa_column=created_at_column())
    refreshing_until: datetime | None = Field(default=None, sa_column=time_column())


class OAuthSignIn(Table, table=True):
    """A sign-in to an MCP server.

    Tickets and states are stored as hashes. An `outcome` of "" is success.
    """

    __tablename__ = "oauth_logins"

    ticket: str = Field(primary_key=True, sa_type=Text)
    login: JsonObject = Field(sa_column=json_column(nullable=False))
    state: str | None = Field(default=None, sa_type=Text)
    callback: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    outcome: str | None = Field(default=None, sa_type=Text)
    expires_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class TurnEvents(Table, table=True):
    """Consecutive events of a turn in the journal.

    `payload` has the events `first_seq … last_seq`, one JSON object per line.
    """

    __tablename__ = "turn_events"

    turn_id: UUID = Field(primary_key=True)
    first_seq: int = Field(primary_key=True)
    last_seq: int
    payload: str = Field(sa_type=Text)


class Worker(Table, table=True):
    """A gateway process that runs turns.

    Other workers may claim its turns after `lease_until`. `seen_at` is the time of its last heartbeat; it replaces the
    lease of a worker of release 0.1.0, which has none.
    """

    __tablename__ = "workers"

    id: UUID = Field(primary_key=True)
    host: str = Field(sa_type=Text)
    pid: int = Field(sa_type=BigInteger)
    started_at: datetime | None = Field(default=None, sa_column=created_at_column())
    seen_at: datetime | None = Field(default=None, sa_column=created_at_column())
    lease_until: datetime | None = Field(default=None, sa_column=time_column())
