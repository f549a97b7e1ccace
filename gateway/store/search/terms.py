"""Terms of a text, for its index and for queries.

PostgreSQL's parser takes a path, a mail address or a Chinese sentence as one word, and an unknown tag as none. So the
application finds the terms, in the texts and in the queries alike.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

import regex

MAX_LEXEME_LENGTH = 100
"""Characters of a longer word, for example of encoded data, that count."""
MAX_PARTS = 8

# Scripts without spaces between words. Korean has them, but joins particles to its words.
_UNSPACED = r"\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}\p{scx=Hang}\p{scx=Bopo}\p{scx=Thai}\p{scx=Laoo}\p{scx=Khmr}\p{scx=Mymr}\p{scx=Tibt}"  # noqa: E501
_IGNORED = r"\u00ad\u200c-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufe00-\ufe0f"
_TERM = regex.compile(
    rf"(?V1)(?P<word>[[\p{{L}}\p{{M}}\p{{N}}{_IGNORED}]--[{_UNSPACED}]]+)"
    rf"|(?P<run>[[{_UNSPACED}]&&[\p{{L}}\p{{M}}\p{{N}}]]+)"
    r"|(?P<symbol>[[\p{Extended_Pictographic}\p{Regional_Indicator}]--[\u00a9\u00ae]])"
)
ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_CAMEL_CASE = regex.compile(r"(?<=[\p{Ll}\p{N}])(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})")
_ACCENTS = regex.compile(
    r"[\p{Cf}\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    r"\u06d6-\u06dc\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f]+"
)
"""Accents and vowel points that are optional in writing.

Those of other scripts stay, because they change the word, for example Indic vowel signs.
"""
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "\u0131": "i", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"}
)
"""Letters with a stroke, and ligatures, which Unicode does not decompose."""


Term = tuple[str, str]
"""Kind and text of a term as it stands in a text.

The kind is word, run (characters of a script without spaces) or symbol.
"""


def list_terms(text: str) -> Iterator[Term]:
    """Yield the terms of a text in order."""
    if text.isascii():
        for word in ASCII_WORD.findall(text):
            yield "word", word
        return
    for match in _TERM.finditer(_normalize("NFKC", text)):
        kind, found = match.lastgroup or "", match.group()
        if kind == "word" and (accents := _ACCENTS.match(found)):
            found = found[accents.end() :]
        if found:
            yield kind, found


def fold(text: str) -> str:
    """Remove case, accents and compatibility forms."""
    if text.isascii():
        return text.lower()
    decomposed = _normalize("NFKD", _normalize("NFKC", text).casefold())
    return _normalize("NFC", _ACCENTS.sub("", decomposed)).translate(_LETTERS)


def _normalize(form: Literal["NFC", "NFKC", "NFKD"], text: str) -> str:
    """Normalize a text.

    Most texts are normalized, and the check is several times faster.
    """
    return text if unicodedata.is_normalized(form, text) else unicodedata.normalize(form, text)


def fold_word(word: str) -> tuple[str, ...]:
    """Return a folded word and its parts in camel case."""
    word = word[:MAX_LEXEME_LENGTH]
    folded = fold(word)
    if word[1:] == folded[1:] or word.isupper() or len(word) == MAX_LEXEME_LENGTH:
        return (folded,)
    parts = [fold(part) for part in _CAMEL_CASE.split(word) if part]
    return (folded, *parts) if 1 < len(parts) <= MAX_PARTS else (folded,)
