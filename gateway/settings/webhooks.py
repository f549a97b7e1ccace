"""Settings of webhooks."""

import base64
import binascii
from typing import Annotated, Any, Self

from pydantic import SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from gateway.settings.values import CommaSeparated
from gateway_runtime.outgoing.private_targets import parse_private_target

SECRET_PREFIX = "whsec_"  # noqa: S105 - how Standard Webhooks marks a secret
_MIN_SECRET_BYTES = 24


class WebhookSettings(BaseSettings):
    """Settings of webhooks.

    Requests may name URLs at `webhook_hosts`, which are globs; none: no webhooks. Messages are signed with each of
    `webhook_secrets`, so that a receiver can change to a new one.
    """

    webhook_hosts: CommaSeparated = ()
    webhook_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    webhook_private_targets: CommaSeparated = ()

    @field_validator("webhook_private_targets")
    @classmethod
    def _validate_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            parse_private_target(target)
        return targets

    @field_validator("webhook_secrets", mode="before")
    @classmethod
    def _split_secrets(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _validate_secrets(self) -> Self:
        """Require a secret for webhooks, and keys that are long enough."""
        if self.webhook_hosts and not self.webhook_secrets:
            raise ValueError("WEBHOOK_HOSTS: needs WEBHOOK_SECRETS, with which messages are signed")
        for key in self.list_webhook_keys():
            if len(key) < _MIN_SECRET_BYTES:
                raise ValueError(f"WEBHOOK_SECRETS: each needs at least {_MIN_SECRET_BYTES} bytes")
        return self

    def list_webhook_keys(self) -> tuple[bytes, ...]:
        """Return the keys of signatures.

        Raises:
            ValueError: a secret is not `whsec_` and base64.
        """
        keys: list[bytes] = []
        for secret in self.webhook_secrets:
            text = secret.get_secret_value()
            if not text.startswith(SECRET_PREFIX):
                raise ValueError(f"WEBHOOK_SECRETS: each must begin with {SECRET_PREFIX}")
            try:
                keys.append(base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True))
            except binascii.Error:
                raise ValueError(f"WEBHOOK_SECRETS: each must be {SECRET_PREFIX} and base64") from None
        return tuple(keys)
