"""Matching of URIs with URI templates, in time linear to both."""

import re

_PARTS = re.compile(r"(\{[^{}]*\})")
_MAX_TEMPLATE_LENGTH = 2_000
_ANY_TEXT_OPERATORS = "+#*"


class UriMatcher:
    """A URI that is compared with templates.

    `{name}` matches one path segment, `{+name}` any text. A template of more than 2,000 characters matches nothing.

    The positions that the beginning of a template can reach are the bits of an integer, so that no part of a template
    is tried twice.
    """

    def __init__(self, uri: str) -> None:
        self._end = 1 << len(uri)
        self._characters: dict[str, int] = {}
        for index, character in enumerate(uri):
            self._characters[character] = self._characters.get(character, 0) | 1 << index
        self._no_slash = (self._end - 1) & ~self._characters.get("/", 0)

    def matches(self, template: str) -> bool:
        """Return whether the URI can be made from the template."""
        if len(template) > _MAX_TEMPLATE_LENGTH:
            return False
        positions = 1
        for part in _PARTS.split(template):
            if part.startswith("{") and part.endswith("}"):
                is_any_text = part[1:2] in _ANY_TEXT_OPERATORS and part[1:2] != ""
                positions = self._skip_text(positions) if is_any_text else self._skip_segment(positions)
            else:
                for character in part:
                    positions = (positions & self._characters.get(character, 0)) << 1
                    if not positions:
                        return False
        return bool(positions & self._end)

    def _skip_text(self, positions: int) -> int:
        """Every position after the first one."""
        first = positions & -positions
        return (2 * self._end - 1) & ~(2 * first - 1) if first else 0

    def _skip_segment(self, positions: int) -> int:
        """Every position that characters without a slash lead to."""
        starts = positions & self._no_slash
        # The carry of the addition runs from the first start of each segment to the segment's end.
        passed = ((starts + self._no_slash) ^ self._no_slash | starts) & self._no_slash
        return passed << 1
