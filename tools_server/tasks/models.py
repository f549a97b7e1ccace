"""The tables of the schema `tools`."""

from datetime import datetime
from typing import ClassVar

from sqlalchemy import CheckConstraint, Column, DateTime, Index, Integer, LargeBinary, Text, func
from sqlmodel import Field as ColumnField
from sqlmodel import SQLModel


class Task(SQLModel, table=True):
    """A task.

    Ids count from 1 for each user; the id of a deleted task is not used again.
    """

    __tablename__: ClassVar[str] = "tasks"  # pyright: ignore[reportIncompatibleVariableOverride]
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'completed')", name="ck_tasks_status"),
        {"schema": "tools"},
    )

    user_id: str = ColumnField(sa_column=Column(Text, primary_key=True))
    id: int = ColumnField(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    title: str = ColumnField(sa_type=Text)
    description: str = ColumnField(default="", sa_column=Column(Text, nullable=False, server_default=""))
    status: str = ColumnField(default="pending", sa_type=Text)
    created_at: datetime | None = ColumnField(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=func.now())
    )
    completed_at: datetime | None = ColumnField(default=None, sa_column=Column(DateTime(timezone=True)))


class TaskCounter(SQLModel, table=True):
    """The last task id of each user."""

    __tablename__: ClassVar[str] = "task_counters"  # pyright: ignore[reportIncompatibleVariableOverride]
    __table_args__: ClassVar[dict[str, str]] = {"schema": "tools"}

    user_id: str = ColumnField(sa_column=Column(Text, primary_key=True))
    last_id: int


class TaskCall(SQLModel, table=True):
    """A call with an idempotency key, and its result.

    Committed together with the change that the call made.
    """

    __tablename__: ClassVar[str] = "task_calls"  # pyright: ignore[reportIncompatibleVariableOverride]
    __table_args__ = (Index("ix_task_calls_created_at", "created_at"), {"schema": "tools"})

    user_id: str = ColumnField(sa_column=Column(Text, primary_key=True))
    key: str = ColumnField(sa_column=Column(Text, primary_key=True))
    fingerprint: bytes = ColumnField(sa_column=Column(LargeBinary, nullable=False))
    result: str | None = ColumnField(default=None, sa_column=Column(Text))
    created_at: datetime | None = ColumnField(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=func.now())
    )
