"""Kinds of columns of the gateway's tables, and their base class."""

from datetime import datetime
from typing import Any, ClassVar, TypeVar

from sqlalchemy import Column, DateTime, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine
from sqlmodel import SQLModel

T = TypeVar("T")


def created_at_column() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=False, server_default=func.now())


def time_column() -> Column[datetime]:
    return Column(DateTime(timezone=True), nullable=True)


def number_column(kind: type[TypeEngine[T]], default: str = "0") -> Column[T]:
    return Column(kind, nullable=False, server_default=text(default))


def json_column(*, nullable: bool = True, none_as_null: bool = False) -> Column[object]:
    return Column(JSONB(none_as_null=none_as_null), nullable=nullable)


class Table(SQLModel):
    """Base of the tables. It allows a string as table name."""

    __tablename__: ClassVar[Any]
