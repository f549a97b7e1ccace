"""Tables of webhook messages, and of the receivers of push notifications."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Column, DateTime, ForeignKey, ForeignKeyConstraint, Index, LargeBinary, Text, func, text
from sqlalchemy import Integer as IntegerType
from sqlmodel import Field

from gateway.store.tables.columns import Table, created_at_column, number_column, time_column


class WebhookMessageRow(Table, table=True):
    """A message for the URL of a turn.

    With `push_id`, its receiver is one of its push notifications.
    `next_attempt_at` is null once it was delivered or given up. `attempts` counts the claims.
    """

    __tablename__ = "webhook_messages"
    __table_args__ = (
        Index("ix_webhook_messages_turn", "turn_id"),
        Index("ix_webhook_messages_owner", "owner", "failed_at"),
        Index("ix_webhook_messages_due", "next_attempt_at", postgresql_where=text("next_attempt_at IS NOT NULL")),
        ForeignKeyConstraint(
            ["turn_id", "push_id"],
            ["push_configs.turn_id", "push_configs.id"],
            name="fk_webhook_messages_push",
            ondelete="CASCADE",
        ),
    )

    id: UUID = Field(primary_key=True)
    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), nullable=False))
    owner: str = Field(sa_type=Text)
    url: str = Field(sa_type=Text)
    event: str = Field(sa_type=Text)
    payload: str = Field(sa_type=Text)
    attempts: int = Field(default=0, sa_column=number_column(IntegerType))
    error: str | None = Field(default=None, sa_type=Text)
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
    next_attempt_at: datetime | None = Field(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=True, server_default=func.now())
    )
    delivered_at: datetime | None = Field(default=None, sa_column=time_column())
    failed_at: datetime | None = Field(default=None, sa_column=time_column())
    push_id: str | None = Field(default=None, sa_type=Text)


class PushConfigRow(Table, table=True):
    """A receiver of a task's push notifications.

    `sealed` has its token and credentials, encrypted.
    """

    __tablename__ = "push_configs"

    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True))
    id: str = Field(primary_key=True, sa_type=Text)
    owner: str = Field(sa_type=Text)
    url: str = Field(sa_type=Text)
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
