"""Removes or reveals invisible characters and terminal sequences in text."""

import re
from collections.abc import Callable
from typing import Any, cast

# Terminal sequences (OSC, DCS, SOS, PM and APC with their text, CSI, the short ones), and the other control characters.
_SEQUENCES = (
    r"\x1b\][^\x07\x18\x1a\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[PX^_][^\x18\x1a\x1b\x9c]*(?:\x1b\\|\x9c)?"
    r"|\x1b\[[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
# Characters without width or ink: spaces, direction marks, tags, fillers of Hangul, and the variation selectors beyond
# the first sixteen; all that Unicode calls default-ignorable. They can carry text that a model reads and a
# person does not see.
_WIDTHLESS = (
    "[\u00ad\u034f\u061c\u17b4\u17b5\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_HIDDEN = re.compile(f"{_SEQUENCES}|{_WIDTHLESS}")

_EMOJI = "\u203c\u2049\u2100-\u214f\u2190-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_JOINING_SCRIPTS = "\u0600-\u109f\u1780-\u18af\ua800-\uabff\U00011000-\U00011fff"  # Arabic, Indic and related scripts
# Regular text needs some of these, one at a time: emoji presentation, emoji joiners, and joiners of some scripts.
# Others are removed.
_UNNEEDED = re.compile(
    f"[\ufe00-\ufe0d]|(?<![0-9#*\u00a9\u00ae{_EMOJI}])[\ufe0e\ufe0f]|(?<![\u1820-\u18aa])[\u180b-\u180f]"
    "|\u115f(?![\u1161-\u11a7\ud7b0-\ud7c6])|(?<![\u1100-\u115e\ua960-\ua97c])\u1160"  # hold a place in old Korean
    f"|(?<![{_JOINING_SCRIPTS}])(?:\u200c|(?<![{_EMOJI}\ufe0f])\u200d|\u200d(?![{_EMOJI}]))"
)


_CONTROLS = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]|{_WIDTHLESS}")
_INVISIBLE = re.compile(f"{_CONTROLS.pattern}|{_UNNEEDED.pattern}")


def sanitize_text(text: str) -> str:
    """The text without invisible characters.

    Those that emoji and some scripts need stay.
    """
    return text if text.isascii() and text.isprintable() else _UNNEEDED.sub("", _HIDDEN.sub("", text))


def sanitize_value(value: Any) -> Any:
    """A JSON value with all its strings and keys sanitized."""
    if isinstance(value, str):
        return sanitize_text(value)
    if isinstance(value, list):
        return [sanitize_value(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {sanitize_text(name): sanitize_value(item) for name, item in cast(dict[str, Any], value).items()}
    return value


def clean_text(text: str, max_length: int) -> str:
    """The sanitized text, cut to `max_length` characters."""
    # Cut twice: sanitizing a text of any length would take long, and shortens it.
    return sanitize_text(text[: 4 * max_length])[:max_length]


def reveal_text(text: str) -> str:
    """The text with invisible characters as escapes.

    An escape is, for example, `\\u200b`. People review such a text.
    """
    return _INVISIBLE.sub(_escape, text)


def escape_for_terminal(text: str) -> str:
    """The text with control characters and direction marks as escapes.

    Line feeds and tabs stay. A terminal would obey the others: they set its title or its clipboard, or hide text.
    """
    return text if text.isascii() and text.isprintable() else _CONTROLS.sub(_escape, text.replace("\r\n", "\n"))


def replace_controls(text: str, replace: Callable[[str], str]) -> str:
    """The text with each control character and direction mark replaced."""
    return _CONTROLS.sub(lambda match: replace(match[0]), text)


def reveal_value(value: Any) -> Any:
    """A JSON value with the invisible characters in it as escapes."""
    if isinstance(value, str):
        return reveal_text(value)
    if isinstance(value, list):
        return [reveal_value(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {reveal_text(name): reveal_value(item) for name, item in cast(dict[str, Any], value).items()}
    return value


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
