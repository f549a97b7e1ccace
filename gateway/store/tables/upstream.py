"""Tables of the pass-through to the model's server."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, Index, Text, text
from sqlmodel import Field

from gateway.domain.messages import JsonObject
from gateway.store.tables.columns import Table, created_at_column, json_column, time_column


class RequestHoldRow(Table, table=True):
    """Estimated cost of a request that is no turn.

    It counts until `expires_at`; null: until the row is deleted.
    """

    __tablename__ = "request_holds"
    __table_args__ = (Index("ix_request_holds_owner", "owner"),)

    id: UUID = Field(primary_key=True)
    owner: str = Field(sa_type=Text)
    key: str | None = Field(default=None, sa_type=Text)
    tokens: int = Field(sa_type=BigInteger)
    usd: float
    expires_at: datetime | None = Field(default=None, sa_column=time_column())


class UpstreamObjectRow(Table, table=True):
    """File or batch of the model's server, with its owner.

    `kind`: file, batch. `body` is the object as the server described it last. Of an input file of batches, `estimate`
    has the models and costs. A batch without `settled_at` may still cost something, for which `hold_id` stands.
    """

    __tablename__ = "upstream_objects"
    __table_args__ = (
        Index("ix_upstream_objects_owner", "owner", "kind", text("created_at DESC"), text("id DESC")),
        Index("ix_upstream_objects_open", "checked_at", postgresql_where=text("kind = 'batch' AND settled_at IS NULL")),
    )

    id: str = Field(primary_key=True, sa_type=Text)
    kind: str = Field(sa_type=Text)
    owner: str = Field(sa_type=Text)
    key: str | None = Field(default=None, sa_type=Text)
    body: JsonObject = Field(sa_column=json_column(nullable=False))
    estimate: JsonObject | None = Field(default=None, sa_column=json_column(none_as_null=True))
    hold_id: UUID | None = None
    created_at: datetime | None = Field(default=None, sa_column=created_at_column())
    checked_at: datetime | None = Field(default=None, sa_column=created_at_column())
    settled_at: datetime | None = Field(default=None, sa_column=time_column())
