"""Settings of the web console that the gateway needs."""

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from gateway_runtime.settings.hosts import normalize_origin


class ConsoleLinkSettings(BaseSettings):
    """Settings of the web console that the gateway needs.

    `gateway_console.settings` has all of them.
    """

    console: bool = True
    console_port: int = Field(default=8002, ge=0, le=65535)
    console_public_url: str | None = None

    @field_validator("console_public_url")
    @classmethod
    def _normalize_console_url(cls, value: str | None) -> str | None:
        return None if value is None else normalize_origin(value.strip())
