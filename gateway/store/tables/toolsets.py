"""Table of toolsets that were defined at run time."""

from datetime import datetime

from sqlalchemy import Text
from sqlmodel import Field

from gateway.domain.messages import JsonObject
from gateway.store.tables.columns import Table, created_at_column, json_column


class ToolsetRow(Table, table=True):
    """A toolset. `definition` has the fields of `ToolsetDefinition`."""

    __tablename__ = "toolsets"

    name: str = Field(primary_key=True, sa_type=Text)
    definition: JsonObject = Field(sa_column=json_column(nullable=False))
    changed_by: str = Field(sa_type=Text)
    changed_at: datetime | None = Field(default=None, sa_column=created_at_column())
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
