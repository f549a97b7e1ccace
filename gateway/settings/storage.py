"""Settings of Postgres, the journal and the leases of workers."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from gateway.settings.values import is_loopback
from gateway_runtime.placeholders import is_placeholder
from gateway_runtime.postgres.settings import PostgresSettings
from gateway_runtime.postgres.url import parse_address


class StorageSettings(PostgresSettings):
    """Settings of Postgres, the journal and the leases of workers."""

    database_pool_size: int = Field(default=5, ge=1, le=200)
    database_wait_seconds: float = Field(default=5.0, ge=0)
    database_statement_timeout_seconds: float = Field(default=6.0, ge=0, le=600)
    database_lock_timeout_seconds: float = Field(default=3.0, ge=0, le=600)
    database_silence_timeout_seconds: float = Field(default=8.0, ge=0, le=600)
    migrate_on_start: bool = False
    journal_flush_ms: float = Field(default=50.0, ge=1, le=10_000)
    synchronous_journal: bool = False
    storage_retry_seconds: float = Field(default=10.0, gt=0, le=600)
    journal_retention_days: float = Field(default=30.0, gt=0)
    input_expiry_days: float = Field(default=7.0, gt=0)
    turn_retention_days: float | None = Field(default=None, gt=0)
    heartbeat_seconds: float = Field(default=2.0, gt=0, le=60)
    heartbeat_timeout_seconds: float | None = Field(default=None, gt=0, le=600)
    redaction_rules: Path | None = None

    @model_validator(mode="after")
    def _reject_placeholder_database_password(self) -> Self:
        """Refuse a placeholder password, except for a database on this machine."""
        if (url := self.postgres_url) is None:
            return self
        address = parse_address(url)
        is_remote = any(host and not host.startswith("/") and not is_loopback(host) for host, _ in address.hosts)
        if is_remote and is_placeholder(address.password or ""):
            setting = "DATABASE_URL: its password" if self.database_url is not None else "POSTGRES_PASSWORD:"
            raise ValueError(
                f"{setting} is a placeholder: set one of your own, for example from `openssl rand -hex 32`"
            )
        return self

    @model_validator(mode="after")
    def _validate_redaction_with_journal(self) -> Self:
        if self.redaction_rules is not None and self.synchronous_journal:
            raise ValueError("REDACTION_RULES: not with SYNCHRONOUS_JOURNAL, which stores texts in small pieces")
        return self

    @model_validator(mode="after")
    def _validate_heartbeat_timeout(self) -> Self:
        timeout, interval = self.heartbeat_timeout_seconds, self.heartbeat_seconds
        if timeout is not None and timeout < 2 * interval:
            raise ValueError(f"HEARTBEAT_TIMEOUT_SECONDS: must be at least {2 * interval:g}, twice HEARTBEAT_SECONDS")
        return self

    @model_validator(mode="after")
    def _validate_database_timeouts(self) -> Self:
        """Require PostgreSQL to end a statement before the gateway closes the connection."""
        statement, silence = self.database_statement_timeout_seconds, self.database_silence_timeout_seconds
        if silence and not 0 < statement < silence:
            raise ValueError(
                "DATABASE_STATEMENT_TIMEOUT_SECONDS: must be shorter than DATABASE_SILENCE_TIMEOUT_SECONDS"
            )
        return self
