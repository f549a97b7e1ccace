"""Settings of who may use the gateway: keys, tokens, hosts and origins."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from gateway.settings.origins import expand_dev_origins
from gateway.settings.values import CommaSeparated, is_web_address
from gateway_runtime.placeholders import is_placeholder
from gateway_runtime.settings.hosts import normalize_host_pattern, normalize_origin
from gateway_runtime.settings.secrets import has_line_end

MIN_API_KEY_LENGTH = 16
MIN_JWT_SECRET_LENGTH = 32
_SHARED_KEY_ALGORITHMS = {"HS256", "HS384", "HS512"}
_PUBLIC_KEY_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}


class AccessSettings(BaseSettings):
    """Settings of who may use the gateway: keys, tokens, hosts and origins."""

    gateway_allow_anonymous: bool = False
    gateway_encryption_key: SecretStr | None = Field(default=None, min_length=16)
    gateway_encryption_old_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    cors_origins: CommaSeparated = ()
    trusted_hosts: CommaSeparated = ()
    trusted_proxies: CommaSeparated = Field(
        default=(), validation_alias=AliasChoices("TRUSTED_PROXIES", "FORWARDED_ALLOW_IPS")
    )
    jwt_secret: SecretStr | None = None
    jwt_jwks_url: CommaSeparated = ()
    jwt_issuer: CommaSeparated = ()
    jwt_audience: str | None = None
    jwt_algorithms: CommaSeparated = ()
    jwt_role_claim: str = "role"
    jwt_scope_claim: str | None = None
    jwt_leeway_seconds: float = Field(default=10.0, ge=0, le=300)

    @model_validator(mode="before")
    @classmethod
    def _keep_old_encryption_key(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Keep the key with its line end, as older releases read it."""
        key = values.get("gateway_encryption_key")
        if not has_line_end(key):
            return values
        old_keys = cls._split_old_keys(values.get("gateway_encryption_old_keys") or ())
        return {**values, "gateway_encryption_old_keys": (*old_keys, key)}

    @field_validator("cors_origins")
    @classmethod
    def _normalize_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normalize_origin, expand_dev_origins(origins)))

    @field_validator("trusted_hosts")
    @classmethod
    def _normalize_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normalize_host_pattern, hosts))

    @model_validator(mode="after")
    def _validate_jwt_settings(self) -> Self:
        """Require an issuer, an audience and fitting algorithms.

        The algorithms must fit the kind of key.
        """
        if self.jwt_secret is None and not self.jwt_jwks_url and not any(map(is_web_address, self.jwt_issuer)):
            return self
        if self.jwt_secret is not None and self.jwt_jwks_url:
            raise ValueError("JWT_SECRET and JWT_JWKS_URL: set one of them")
        if self.jwt_secret is not None and len(self.jwt_secret.get_secret_value()) < MIN_JWT_SECRET_LENGTH:
            raise ValueError(f"JWT_SECRET: must have at least {MIN_JWT_SECRET_LENGTH} characters")
        if not all(map(is_web_address, self.jwt_jwks_url)):
            raise ValueError("JWT_JWKS_URL: must start with http:// or https://")
        if not self.jwt_issuer or not self.jwt_audience:
            raise ValueError(
                "JWT_ISSUER and JWT_AUDIENCE: both are required, or tokens for other services would be accepted"
            )
        self._validate_issuers()
        supported = _SHARED_KEY_ALGORITHMS if self.jwt_secret is not None else _PUBLIC_KEY_ALGORITHMS
        if not set(self.jwt_algorithms) <= supported:
            raise ValueError(f"JWT_ALGORITHMS: only {', '.join(sorted(supported))} fit this kind of key")
        return self

    def _validate_issuers(self) -> None:
        """Require one source of keys for each issuer.

        `#` separates issuer and subject in the names of users.
        """
        if len(set(self.jwt_issuer)) < len(self.jwt_issuer) or any("#" in issuer for issuer in self.jwt_issuer[1:]):
            raise ValueError("JWT_ISSUER: issuers must differ and contain no #")
        if self.jwt_secret is not None and len(self.jwt_issuer) > 1:
            raise ValueError("JWT_ISSUER: with JWT_SECRET there is one issuer")
        if self.jwt_jwks_url and len(self.jwt_jwks_url) != len(self.jwt_issuer):
            raise ValueError("JWT_JWKS_URL: name one URL for each of JWT_ISSUER, in the same order, or none")
        if self.jwt_secret is None and not self.jwt_jwks_url and not all(map(is_web_address, self.jwt_issuer)):
            raise ValueError("JWT_ISSUER: without JWT_JWKS_URL, issuers must start with http:// or https://")

    @property
    def jwks_urls(self) -> dict[str, str | None]:
        """Addresses of published keys by issuer.

        None: the issuer's metadata has it. Empty: a shared secret signs tokens, or none are accepted.
        """
        if self.jwt_secret is not None:
            return {}
        if self.jwt_jwks_url:
            return dict(zip(self.jwt_issuer, self.jwt_jwks_url, strict=True))
        return {issuer: None for issuer in self.jwt_issuer if is_web_address(issuer)}

    @property
    def authorization_servers(self) -> list[str]:
        """Issuers of the tokens with which hosts sign in."""
        return [issuer for issuer in self.jwks_urls if is_web_address(issuer)]

    @field_validator("gateway_encryption_old_keys", mode="before")
    @classmethod
    def _split_old_keys(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _validate_api_key_length(cls, value: SecretStr | None) -> SecretStr | None:
        secret = value.get_secret_value() if value is not None else None
        # Placeholders have a clearer message, which `Settings` adds.
        if secret is not None and len(secret) < MIN_API_KEY_LENGTH and not is_placeholder(secret):
            raise ValueError(f"must have at least {MIN_API_KEY_LENGTH} characters")
        return value
