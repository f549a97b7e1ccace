"""Terms of a turn as a vector of PostgreSQL.

The positions are those of the words, and of the characters in scripts without spaces. Such a run has a pair of
characters at each position, and the last character alone, so a run of any length is found as a phrase of pairs.
"""

import string

from gateway.store.search.terms import ASCII_WORD, MAX_LEXEME_LENGTH, fold_word, list_terms

MAX_TEXT_LENGTH = 50_000
"""Searchable characters of a prompt or a response."""
MAX_VECTOR_BYTES = 1_000_000
"""Limit of a vector, of which PostgreSQL refuses 2^20 bytes.

Further terms are left out.
"""
_MAX_POSITION = 16_383
_MAX_POSITIONS = 255
"""PostgreSQL ignores further positions of a term."""
_ENTRY_BYTES = 4
_SHORT_LENGTH = 10_000
"""Characters of texts whose vector is within every limit."""


def _build_table(classes: dict[str, str]) -> bytes:
    """Build a table for `bytes.translate`, which replaces other bytes by blanks."""
    table = bytearray(b" " * 256)
    for characters, replacements in classes.items():
        for character, replacement in zip(
            characters, replacements.ljust(len(characters), replacements[0]), strict=True
        ):
            table[ord(character)] = ord(replacement)
    return bytes(table)


_WORDS = _build_table(
    {
        string.ascii_lowercase: string.ascii_lowercase,
        string.ascii_uppercase: string.ascii_lowercase,
        string.digits: string.digits,
    }
)
_CASES = _build_table({string.ascii_lowercase: "a", string.ascii_uppercase: "A", string.digits: "0"})
_NUMBERS = _build_table({string.ascii_letters: "a", string.digits: "0", "eE": "e"})
_LONG_WORD = b"a" * MAX_LEXEME_LENGTH
_ALL_LETTERS = _build_table({string.ascii_letters + string.digits: "a"})


def find_plain_words(*texts: str) -> str | None:
    """Return the words of texts, if these have no other terms.

    PostgreSQL's parser makes the vector of `build_search_vector` of them, in a tenth of its time. Texts with other
    characters than ASCII, or with words in camel case, have further terms. The parser splits a word like 1e5a, after
    the number.
    """
    try:
        data = " ".join(texts).encode("ascii")
    except UnicodeEncodeError:
        return None
    cases = data.translate(_CASES)
    if b"aA" in cases or b"0A" in cases or b"AAa" in cases:
        return None
    if b"0e0" in data.translate(_NUMBERS) or _LONG_WORD in data.translate(_ALL_LETTERS):
        return None
    return data.translate(_WORDS).decode("ascii")


def build_search_vector(*texts: str) -> str:
    """Build a vector, in PostgreSQL's text form, from texts.

    Positions beyond PostgreSQL's last one start again at 1, so that phrases are found everywhere.
    """
    words: dict[str, list[int]] = {}
    lexemes: dict[str, list[int]] = {}
    position = 1
    for text in texts:
        if text.isascii():
            position = _add_ascii_words(text[:MAX_TEXT_LENGTH], words, position)
            continue
        for kind, term in list_terms(text[:MAX_TEXT_LENGTH]):
            if kind == "run":
                for index in range(len(term)):
                    lexemes.setdefault(term[index : index + 2], []).append(position + index)
                position += len(term)
            else:
                words.setdefault(term, []).append(position)
                position += 1
    _add_folded_words(words, lexemes)
    if sum(map(len, texts)) <= _SHORT_LENGTH:
        return " ".join(
            [_format_entry(lexeme, found) if found[1:] else f"{lexeme}:{found[0]}" for lexeme, found in lexemes.items()]
        )
    return _format_vector(lexemes)


def _add_ascii_words(text: str, words: dict[str, list[int]], position: int) -> int:
    """Add the words, and return the position behind them.

    Most words occur once, so this takes no call for each: a turn's end has hundreds.
    """
    for word in ASCII_WORD.findall(text):
        if word in words:
            words[word].append(position)
        else:
            words[word] = [position]
        position += 1
    return position


def _add_folded_words(words: dict[str, list[int]], lexemes: dict[str, list[int]]) -> None:
    """Fold each word once. Nearly all are folded already."""
    for word, lowered in zip(words, "\n".join(words).lower().split("\n"), strict=True) if words else ():
        if word == lowered and word.isascii() and not word[MAX_LEXEME_LENGTH:] and word not in lexemes:
            lexemes[word] = words[word]
            continue
        for lexeme in fold_word(word):
            lexemes[lexeme] = [*lexemes.get(lexeme, ()), *words[word]]


def _format_vector(lexemes: dict[str, list[int]]) -> str:
    """Format lexemes.

    They have only letters, marks, digits and symbols, so none needs an escape.
    """
    size = 0
    entries: list[str] = []
    for lexeme, positions in lexemes.items():
        size += len(lexeme.encode()) + _ENTRY_BYTES + 2 * len(positions)
        if size > MAX_VECTOR_BYTES:
            break
        entries.append(_format_entry(lexeme, positions))
    return " ".join(entries)


def _format_entry(lexeme: str, positions: list[int]) -> str:
    if len(positions) > _MAX_POSITIONS or max(positions) > _MAX_POSITION:
        positions = [(position - 1) % _MAX_POSITION + 1 for position in positions[:_MAX_POSITIONS]]
    return f"{lexeme}:{','.join(map(str, positions))}"
