"""Push notification configs of A2A."""

import re
from typing import Any, cast
from uuid import UUID, uuid4

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject
from gateway.ports.webhooks import PushConfig

_ID = re.compile(r"[!-~]{1,128}")
_SCHEME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_HEADER_VALUE = re.compile(r"[!-~]([ -~]{0,4094}[!-~])?")


def read_push_config(body: JsonObject) -> PushConfig:
    """Read a config; one without an id gets one.

    Raises:
        InvalidRequest: a value cannot be sent in a header.
    """
    authentication = cast(dict[str, Any], body.get("authentication") or {})
    config = PushConfig(
        id=body.get("id") or uuid4().hex,
        url=body["url"],
        token=body.get("token", ""),
        scheme=authentication.get("scheme", ""),
        credentials=authentication.get("credentials", ""),
    )
    for name, value, pattern in (
        ("id", config.id, _ID),
        ("token", config.token, _HEADER_VALUE),
        ("authentication.scheme", config.scheme, _SCHEME),
        ("authentication.credentials", config.credentials, _HEADER_VALUE),
    ):
        if value and not pattern.fullmatch(value):
            raise InvalidRequest(f"{name}: must be printable ASCII, and not too long.", param=name)
    return config


def show_push_config(turn_id: UUID, config: PushConfig) -> JsonObject:
    """Build the JSON of a config, without its credentials."""
    shown: JsonObject = {"taskId": str(turn_id), "id": config.id, "url": config.url, "token": config.token}
    return shown | {"authentication": {"scheme": config.scheme}} if config.scheme else shown
