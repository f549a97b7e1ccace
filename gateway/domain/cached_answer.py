"""Answers that the response cache reuses."""

import msgspec


class CachedAnswer(msgspec.Struct, frozen=True):
    """Answer of an earlier turn: its steps' texts and finish reason."""

    texts: tuple[str, ...]
    finish_reason: str
