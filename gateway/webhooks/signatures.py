"""Signatures of Standard Webhooks."""

import base64
import hmac
from collections.abc import Iterable


def sign_message(message_id: str, timestamp: int, payload: str, keys: Iterable[bytes]) -> str:
    """Return the header with a signature of each key.

    Receivers that change keys need several.
    """
    content = f"{message_id}.{timestamp}.{payload}".encode()
    digests = (hmac.digest(key, content, "sha256") for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
