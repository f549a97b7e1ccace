"""Table of the tasks of MCP servers that turns wait for."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Column, DateTime, ForeignKey, Index, Text, text
from sqlmodel import Field

from gateway.domain.messages import JsonObject
from gateway.store.tables.columns import Table, created_at_column, json_column, time_column


class ToolTaskRow(Table, table=True):
    """A call of a turn that its server runs as a task.

    The task is polled at `due_at`, until `settled_at` is set.
    """

    __tablename__ = "tool_tasks"
    __table_args__ = (
        Index("ix_tool_tasks_turn", "turn_id"),
        Index("ix_tool_tasks_due", "due_at", postgresql_where=text("settled_at IS NULL")),
    )

    id: UUID = Field(primary_key=True)
    turn_id: UUID = Field(sa_column=Column(ForeignKey("turns.id", ondelete="CASCADE"), nullable=False))
    call_id: str = Field(sa_type=Text)
    task: JsonObject = Field(sa_column=json_column(nullable=False))
    due_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    settled_at: datetime | None = Field(default=None, sa_column=time_column())
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
