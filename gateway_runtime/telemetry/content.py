"""Texts in spans, as JSON of a bounded length."""

from typing import Any

import msgspec

MAX_CONTENT_CHARS = 32_000


def encode_content(value: Any) -> str:
    """Encode a value as JSON of a bounded length."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_CONTENT_CHARS else f"{text[:MAX_CONTENT_CHARS]} [cut]"
