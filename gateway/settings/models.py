"""Settings of the model servers and of calls to them."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings

from gateway.settings.values import CommaSeparated
from gateway_runtime.placeholders import is_placeholder

DEFAULT_MODEL = "openai/gpt-oss-120b"


class ModelSettings(BaseSettings):
    """Settings of the model servers and of calls to them."""

    groq_api_key: SecretStr | None = None
    groq_base_url: str = "https://api.groq.com"
    groq_simulated: bool = False
    model_record_dir: Path | None = Field(
        default=None, validation_alias=AliasChoices("MODEL_RECORD_DIR", "GROQ_RECORD")
    )
    simulator_replay: Path | None = None
    groq_default_model: str = Field(
        default=DEFAULT_MODEL, validation_alias=AliasChoices("GROQ_DEFAULT_MODEL", "GROQ_MODEL")
    )
    groq_temperature: float | None = Field(default=None, ge=0, le=2)
    groq_max_tokens: int | None = Field(default=None, ge=1)
    groq_top_p: float | None = Field(default=None, ge=0, le=1)
    groq_reasoning_effort: Literal["none", "default", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    groq_reasoning_format: Literal["parsed", "raw", "hidden"] | None = None
    openai_api_key: SecretStr | None = None
    openai_base_url: str = "https://api.openai.com/v1"
    openai_default_model: str = Field(
        default="gpt-5-mini", validation_alias=AliasChoices("OPENAI_DEFAULT_MODEL", "OPENAI_MODEL")
    )
    tiktoken_encodings_base: Path | None = None
    model_aliases: bool = True
    model_map: CommaSeparated = ("claude-*",)
    list_plain_models: bool = False
    model_fallbacks: CommaSeparated = ()
    model_retries: int = Field(default=2, ge=0, le=10)
    model_retry_delay: float = Field(default=0.5, ge=0, le=60)
    model_retry_max_wait: float = Field(
        default=10.0, ge=0, le=600, validation_alias=AliasChoices("MODEL_RETRY_MAX_WAIT", "MODEL_PATIENCE")
    )
    model_queue_seconds: float = Field(default=30.0, ge=0, le=3_600)
    model_text_call_chars: int = Field(default=2_000, ge=0, le=100_000)
    model_idle_timeout: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _reject_placeholder_openai_key(self) -> Self:
        """Refuse a placeholder for OpenAI itself.

        Other servers accept any key, such as `none`.
        """
        key, host = self.openai_api_key, urlsplit(self.openai_base_url).hostname
        if host == "api.openai.com" and key is not None and is_placeholder(key.get_secret_value()):
            raise ValueError(
                "OPENAI_API_KEY: is a placeholder: set the key that OpenAI issued to you, or leave it empty for the"
                " simulated Groq"
            )
        return self

    @field_validator("model_map")
    @classmethod
    def _validate_model_map(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            glob, separator, target = entry.partition("=")
            if not glob.strip() or (separator and not target.strip()):
                raise ValueError(f"{entry} is not NAME=MODEL, such as claude-*=openai/gpt-oss-120b")
        return entries

    @field_validator("groq_api_key")
    @classmethod
    def _reject_placeholder_groq_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and is_placeholder(value.get_secret_value()):
            raise ValueError(
                "is a placeholder: set a key from https://console.groq.com/keys, or leave it empty for the simulated"
                " Groq"
            )
        return value

    @field_validator("groq_base_url")
    @classmethod
    def _normalize_groq_base_url(cls, value: str) -> str:
        """Remove `/openai/v1`, which the SDK appends itself."""
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/").removesuffix("/openai/v1").rstrip("/")

    @field_validator("openai_base_url")
    @classmethod
    def _normalize_openai_base_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must be a URL such as http://127.0.0.1:11434/v1")
        return value.rstrip("/")

    def list_model_names(self) -> tuple[tuple[str, str], ...]:
        """Return globs of names in requests, and the models in their place."""
        pairs = (entry.partition("=") for entry in self.model_map)
        return tuple((glob.strip(), target.strip() or self.default_model) for glob, _, target in pairs)

    @property
    def provider(self) -> Literal["groq", "openai"] | None:
        """The provider whose key is set.

        None without a key, where the simulated Groq serves.
        """
        if self.groq_api_key is not None:
            return "groq"
        return "openai" if self.openai_api_key is not None else None

    @property
    def default_model(self) -> str:
        return self.openai_default_model if self.provider == "openai" else self.groq_default_model
