"""Removal of a call's secrets from what its server answers."""

import base64
import html
import json
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, quote_plus

_MIN_LENGTH = 4
_MAX_NESTING = 100


class SecretRedactor:
    """Replaces secrets, in any usual encoding, by `[secret NAME]`."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        forms: dict[str, str] = {}
        for name, secret in secrets.items():
            # `user:password` is one secret, and a server may echo either part.
            for text in (secret, *secret.split(":")):
                if len(text) >= _MIN_LENGTH:
                    forms |= dict.fromkeys(_list_forms(text), name)
        self._names = forms
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def redact(self, text: str) -> str:
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: f"[secret {self._names[match[0]]}]", text)

    def redact_value(self, value: Any, depth: int = 0) -> Any:
        """Redact the texts and names of a JSON value."""
        if self._pattern is None or depth > _MAX_NESTING:
            return value
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, list):
            return [self.redact_value(item, depth + 1) for item in cast("list[Any]", value)]
        if isinstance(value, dict):
            members = cast("dict[str, Any]", value).items()
            return {self.redact(name): self.redact_value(member, depth + 1) for name, member in members}
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = json.dumps(value)
            redacted = self.redact(text)
            return value if redacted == text else redacted
        return value

    def is_found_in(self, text: str) -> bool:
        return self._pattern is not None and self._pattern.search(text) is not None


def _list_forms(secret: str) -> set[str]:
    raw = secret.encode()
    forms = {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        quote(secret),
        html.escape(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        raw.hex(),
        raw.hex().upper(),
        secret[::-1],
    }
    forms |= {form.lower() for form in (quote(secret, safe=""),)}
    # A secret inside of a longer text has one of three alignments in base64.
    for offset in range(3):
        for encoder in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encoder(b"\0" * offset + raw).decode().rstrip("=")
            skipped = 0 if offset == 0 else offset + 1
            aligned = encoded[skipped : len(encoded) - (1 if (len(raw) + offset) % 3 else 0)]
            if len(aligned) >= _MIN_LENGTH:
                forms.add(aligned)
    return {form for form in forms if len(form) >= _MIN_LENGTH}
