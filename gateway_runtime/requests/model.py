"""Base of request bodies: validation stops at the first problems.

Pydantic describes every problem: each unknown field, each entry of a dictionary, each item of a list and, for each,
every member of a union. A description takes microseconds and hundreds of bytes, so bodies of many small problems would
take seconds and gigabytes.
"""

from collections.abc import Collection
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

T = TypeVar("T")
_MAX_NAME_LENGTH = 100

ItemList = Annotated[list[T], Field(fail_fast=True)]
"""List whose first invalid item is the only one that is described."""


class RequestModel(BaseModel):
    """Request body without unknown fields.

    Only the first of many is described.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _limit_unknown_fields(cls, data: Any) -> Any:
        if _count_entries(data) > 2 * (len(cls.__pydantic_fields__) + 1):
            names = cls.model_json_schema()["properties"]
            unknown = next(name for name in data if name not in names)
            raise PydanticCustomError("unknown_fields", "{field}: unknown field", {"field": unknown[:_MAX_NAME_LENGTH]})
        return data


def _count_entries(value: object) -> int:
    return len(cast(Collection[object], value)) if isinstance(value, dict) else 0


def limit_entries(limit: int) -> BeforeValidator:
    """Reject a dictionary of more than `limit` entries.

    Pydantic checks the length only after it has validated each entry.
    """

    def check_length(value: Any) -> Any:
        if (length := _count_entries(value)) > limit:
            context = {"field_type": "Dictionary", "max_length": limit, "actual_length": length}
            raise PydanticKnownError("too_long", context)
        return value

    return BeforeValidator(check_length)
