"""Log lines without what a terminal would obey."""

import logging
import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    """Escape control characters and direction marks, but line feeds and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class EscapingFormatter(logging.Formatter):
    """A formatter of lines with texts of strangers, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))
