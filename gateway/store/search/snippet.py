"""Excerpts of texts, with marked words."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate, islice

from gateway.store.search.query import SearchQuery
from gateway.store.search.terms import fold, fold_word

MAX_TEXT_LENGTH = 20_000
"""Characters of a text that are searched for words to mark."""
_MAX_FRAGMENTS = 2
_FRAGMENT_LENGTH = 180
_CONTEXT_LENGTH = 60
_MAX_SPANS = 500
_SEPARATOR = " ... "
_NOTHING = "(?!)"
Span = tuple[int, int]


class SnippetMarker:
    """Marks the words of a query.

    `stems` are those of its words, in the language of the search. Words are marked inside of others only in a text
    without them as words.
    """

    def __init__(self, query: SearchQuery, stems: Mapping[str, list[str]] | None = None) -> None:
        words = [needle.lexeme for needle in query.needles if needle.word]
        begins = [rf"{fold_word(stem)[0]}\w*" for found in (stems or {}).values() for stem in found]
        pairs = "|".join(needle.lexeme for needle in query.needles if not needle.word)
        overlapping = [f"(?=({pairs}))"] if pairs else []
        bounded = [rf"(?<![^\W_])(?:{'|'.join([*words, *begins])})(?![^\W_])"] if words else []
        self._whole = "|".join([*bounded, *overlapping]) or _NOTHING
        self._inner = "|".join([*words, *overlapping]) or _NOTHING

    def build_snippet(self, text: str) -> str:
        """Build the snippet of a text.

        It has at most two fragments, or the start of a text without words to mark.
        """
        text = unicodedata.normalize("NFC", text[:MAX_TEXT_LENGTH])
        spans = self._find_spans(text)
        if not spans:
            return text[: _find_space(text, 0, _FRAGMENT_LENGTH)]
        fragments: list[str] = []
        end = 0
        while spans and len(fragments) < _MAX_FRAGMENTS:
            first_start, first_end = spans[0]
            start = max(end, first_start - _CONTEXT_LENGTH)
            start = text.find(" ", start, first_start) + 1 or start if start > end else start
            end = _find_space(text, first_end, max(first_end, start + _FRAGMENT_LENGTH))
            fragments.append(_mark(text, start, end, [span for span in spans if span[1] <= end]).strip())
            spans = [span for span in spans if span[0] >= end]
        return _SEPARATOR.join(fragments)

    def _find_spans(self, text: str) -> list[Span]:
        """Find the words to mark.

        Words that overlap are one.
        """
        pieces = [text.lower()] if text.isascii() else [_fold_character(character) for character in text]
        folded = "".join(pieces)
        ends = range(1, len(text) + 1) if text.isascii() else list(accumulate(map(len, pieces)))
        for pattern in (self._whole, self._inner):
            spans: list[Span] = []
            for match in islice(re.finditer(pattern, folded), _MAX_SPANS):
                match_start, match_end = match.span(match.lastindex or 0)
                start = bisect_right(ends, match_start)
                # Characters that are folded to nothing, as accents, belong to the one before them.
                end = max(bisect_right(ends, match_end), bisect_right(ends, match_end - 1) + 1)
                if spans and start < spans[-1][1]:
                    spans[-1] = spans[-1][0], max(spans[-1][1], end)
                else:
                    spans.append((start, end))
            if spans:
                return spans
        return []


@lru_cache(4096)
def _fold_character(character: str) -> str:
    return fold(character)


def _find_space(text: str, start: int, end: int) -> int:
    """Return the last space from `start` on, or `end`."""
    if end >= len(text):
        return len(text)
    space = text.rfind(" ", start, end)
    return end if space < 0 else space


def _mark(text: str, start: int, end: int, spans: list[Span]) -> str:
    marked = ""
    for span_start, span_end in spans:
        marked += f"{text[start:span_start]}<mark>{text[span_start:span_end]}</mark>"
        start = span_end
    return marked + text[start:end]
