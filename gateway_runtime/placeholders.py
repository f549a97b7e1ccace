"""Placeholders of examples, which must not be used as secrets."""

import re

_PLACEHOLDER = re.compile(
    r"([a-z]{1,9}[-_]){0,3}<.*>|.*(\.{3}|…|\*{3})|([a-z]{1,9}[-_]){0,3}x{3,}"
    r"|(gsk[-_]|sk[-_])?(your|my|insert|enter|add)[-_ ].*(key|secret|token|password)([-_ ]here)?"
    r"|.*change[-_ ]?me.*|replace[-_ ]?(me|this)|placeholder"
    r"|secret|password|api[-_ ]?key|example|default|admin|none|null",
    re.IGNORECASE,
)


def is_placeholder(secret: str) -> bool:
    """Return whether a secret looks like the placeholder of an example."""
    return _PLACEHOLDER.fullmatch(secret.strip()) is not None
