"""Settings of rate limits, budgets, sizes and load shedding."""

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from gateway.domain.messages import Budget


class LimitSettings(BaseSettings):
    """Settings of rate limits, budgets, sizes and load shedding."""

    rate_limit_enabled: bool = True
    rate_limit_requests: int = Field(default=600, ge=1)
    rate_limit_window_seconds: int = Field(default=60, ge=1, le=86_400)
    rate_limit_chat_requests: int | None = Field(default=None, ge=1)
    rate_limit_tools_requests: int | None = Field(default=None, ge=1)
    rate_limit_mcp_requests: int | None = Field(default=None, ge=1)
    rate_limit_streams: int = Field(default=500, ge=1)
    redis_url: SecretStr | None = None
    redis_timeout_seconds: float = Field(default=0.5, gt=0, le=60)
    budget_tokens_per_day: int | None = Field(default=None, ge=0)
    budget_tokens_per_month: int | None = Field(default=None, ge=0)
    budget_usd_per_day: float | None = Field(default=None, ge=0)
    budget_usd_per_month: float | None = Field(default=None, ge=0)
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    max_connections: int = Field(default=10_000, ge=10)
    max_source_connections: int = Field(default=1_000, ge=10)
    max_tool_body_bytes: int = Field(default=1024 * 1024, ge=1024)
    max_body_items: int = Field(default=50_000, ge=1_000)
    max_messages: int = Field(default=500, ge=1)
    max_message_chars: int = Field(default=400_000, ge=1)
    turn_max_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    max_running_turns: int = Field(default=2_000, ge=1)
    shed_lag_seconds: float | None = Field(default=1.0, gt=0)
    shed_memory_bytes: int | None = Field(default=None, ge=64 * 1024 * 1024)

    @field_validator("redis_url")
    @classmethod
    def _validate_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must be a Redis URL such as redis://host:6379/0")
        return value

    @property
    def user_budget(self) -> Budget:
        """Budget of each user."""
        return Budget(
            self.budget_tokens_per_day,
            self.budget_tokens_per_month,
            self.budget_usd_per_day,
            self.budget_usd_per_month,
        )
