"""The tables of defined tools, in the schema `tools`."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, Column, DateTime, Integer, LargeBinary, Text, func
from sqlmodel import Field as ColumnField
from sqlmodel import SQLModel


class HttpTool(SQLModel, table=True):
    """A defined tool.

    `draft` is its newest definition, `published` the one that hosts see. `origin` and `published_origin` are those of
    their URLs. `source` tells which operation of which document it was imported from.
    """

    __tablename__: ClassVar[str] = "http_tools"  # pyright: ignore[reportIncompatibleVariableOverride]
    __table_args__: ClassVar[dict[str, str]] = {"schema": "tools"}

    name: str = ColumnField(sa_column=Column(Text, primary_key=True))
    draft: dict[str, Any] = ColumnField(sa_column=Column(JSON, nullable=False))
    origin: str = ColumnField(sa_column=Column(Text, nullable=False))
    published: dict[str, Any] | None = ColumnField(default=None, sa_column=Column(JSON(none_as_null=True)))
    published_origin: str | None = ColumnField(default=None, sa_column=Column(Text))
    revision: int = ColumnField(default=1, sa_column=Column(Integer, nullable=False))
    published_revision: int | None = ColumnField(default=None, sa_column=Column(Integer))
    source: dict[str, Any] | None = ColumnField(default=None, sa_column=Column(JSON(none_as_null=True)))
    updated_by: str = ColumnField(sa_column=Column(Text, nullable=False))
    created_at: datetime | None = ColumnField(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=func.now())
    )
    updated_at: datetime | None = ColumnField(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=func.now())
    )


class HttpToolSecret(SQLModel, table=True):
    """An encrypted secret.

    It belongs to an origin: no definition sends it to another one.
    """

    __tablename__: ClassVar[str] = "http_tool_secrets"  # pyright: ignore[reportIncompatibleVariableOverride]
    __table_args__: ClassVar[dict[str, str]] = {"schema": "tools"}

    origin: str = ColumnField(sa_column=Column(Text, primary_key=True))
    name: str = ColumnField(sa_column=Column(Text, primary_key=True))
    value: bytes = ColumnField(sa_column=Column(LargeBinary, nullable=False))
    updated_by: str = ColumnField(sa_column=Column(Text, nullable=False))
    updated_at: datetime | None = ColumnField(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=func.now())
    )
