"""Settings of both servers that say where PostgreSQL is."""

from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator

from gateway_runtime.postgres.url import build_url, normalize_url, parse_address
from gateway_runtime.settings.secrets import SecretSettings


class PostgresSettings(SecretSettings):
    """Settings of both servers that say where PostgreSQL is."""

    database_url: str | None = Field(default=None, repr=False)
    database_direct_url: str | None = Field(default=None, repr=False)
    postgres_host: str | None = None
    postgres_port: int = Field(default=5432, ge=1, le=65535)
    postgres_user: str = "postgres"
    postgres_password: SecretStr | None = None
    postgres_db: str = "agent_gateway"

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def _normalize_database_url(cls, value: str | None) -> str | None:
        return None if value is None else normalize_url(value)

    @model_validator(mode="after")
    def _validate_direct_url(self) -> Self:
        url = self.postgres_url
        if self.database_direct_url is not None and url is None:
            raise ValueError("DATABASE_DIRECT_URL: set DATABASE_URL, too, to the pooler's address")
        if self.database_direct_url is None and url is not None and parse_address(url).is_pooled:
            raise ValueError(
                "DATABASE_DIRECT_URL: must be PostgreSQL's own address, because DATABASE_URL is that of a pooler"
            )
        return self

    @property
    def postgres_url(self) -> str | None:
        """SQLAlchemy's URL of Postgres, with asyncpg; None where the embedded Postgres serves."""
        pooled = self.database_direct_url is not None
        if self.database_url is not None:
            return normalize_url(self.database_url, pooled=True) if pooled else self.database_url
        if self.postgres_host is None:
            return None
        password = self.postgres_password.get_secret_value() if self.postgres_password else None
        try:
            url = build_url(
                self.postgres_host,
                self.postgres_port,
                user=self.postgres_user,
                password=password,
                database=self.postgres_db,
            )
        except ValueError as error:
            raise ValueError(f"POSTGRES_HOST: {error}") from None
        return normalize_url(url, pooled=pooled)

    @property
    def direct_postgres_url(self) -> str | None:
        """The URL without a pooler, for LISTEN, migrations and the journal."""
        return self.database_direct_url or self.postgres_url
