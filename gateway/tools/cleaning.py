"""Text of MCP servers without what no reader sees: terminal sequences, reversed and hidden characters."""

import re
from typing import Any, cast

# ESC sequences (CSI, and OSC with its text), other control characters, what turns the direction of writing, and the
# tag characters, in which a text that people do not see can be written for a model to read.
_HIDDEN = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
    "|[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]"
)


def clean(text: str) -> str:
    return _HIDDEN.sub("", text)


def clean_value(value: Any) -> Any:
    """A JSON value with all of its texts cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_value(each) for each in cast(list[Any], value)]
    if isinstance(value, dict):
        return {clean(name): clean_value(each) for name, each in cast(dict[str, Any], value).items()}
    return value
