"""Text of MCP servers without what no reader sees: terminal sequences, reversed and hidden characters."""

import re
from typing import Any, cast

# Sequences for terminals (OSC, DCS, SOS, PM and APC with their text, CSI, the short ones), and what is left of control
# characters.
_SEQUENCES = (
    r"\x1b\][^\x07\x18\x1a\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[PX^_][^\x18\x1a\x1b\x9c]*(?:\x1b\\|\x9c)?"
    r"|\x1b\[[0-?]*[ -/]*[@-~]?|\x1b[ -/]*[0-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
# What has no width: spaces, marks and turns of direction, tags and the variation selectors beyond the first sixteen, in
# which a text that people do not see can be written for a model to read.
_WIDTHLESS = "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
_HIDDEN = re.compile(f"{_SEQUENCES}|{_WIDTHLESS}")

_EMOJI = "\u203c\u2049\u2100-\u214f\u2190-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_JOINED = "\u0600-\u109f\u1780-\u18af\ua800-\uabff\U00011000-\U00011fff"  # Arabic, the scripts of India, and their kin
# Of these text needs some: whether a symbol is an emoji, what joins emoji, and letters of some scripts. One at a place.
_STRAY = re.compile(
    f"[\ufe00-\ufe0d]|(?<![0-9#*\u00a9\u00ae{_EMOJI}])[\ufe0e\ufe0f]|(?<![\u1820-\u18aa])[\u180b-\u180f]"
    f"|(?<![{_JOINED}])(?:\u200c|(?<![{_EMOJI}\ufe0f])\u200d|\u200d(?![{_EMOJI}]))"
)


def sanitize_text(text: str) -> str:
    """The text without them. Of what has no width, only what text needs stays."""
    return text if text.isascii() and text.isprintable() else _STRAY.sub("", _HIDDEN.sub("", text))


def sanitize_value(value: Any) -> Any:
    """A JSON value with all of its texts cleaned."""
    if isinstance(value, str):
        return sanitize_text(value)
    if isinstance(value, list):
        return [sanitize_value(each) for each in cast(list[Any], value)]
    if isinstance(value, dict):
        return {sanitize_text(name): sanitize_value(each) for name, each in cast(dict[str, Any], value).items()}
    return value
