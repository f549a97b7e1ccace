"""Secrets in settings, as files and secret managers deliver them."""

from typing import Any, get_args

from pydantic import SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings

_URLS_WITH_PASSWORDS = ("database_url", "database_direct_url")
_LINE_ENDS = "\r\n"


class SecretSettings(BaseSettings):
    """Settings whose secrets lose a last line end.

    `kubectl create secret --from-file`, `echo` and editors add one.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _strip_line_end(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        if not isinstance(value, str) or not _is_secret(name, cls.model_fields[name].annotation):
            return value
        stripped = value.rstrip(_LINE_ENDS)
        if value and not stripped:
            raise ValueError("has only a line end")
        return stripped


def has_line_end(value: object) -> bool:
    """Return whether a secret ends with a line end."""
    return isinstance(value, str) and value.endswith(tuple(_LINE_ENDS))


def _is_secret(name: str, annotation: Any) -> bool:
    return (
        name in _URLS_WITH_PASSWORDS
        or annotation is SecretStr
        or any(_is_secret("", inner) for inner in get_args(annotation))
    )
