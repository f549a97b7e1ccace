"""Queries in the syntax of web search engines.

Their words are found like those of texts, see `list_terms`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gateway.store.search.terms import fold_word, list_terms

_CLAUSE = re.compile(r'(-*)(?:"([^"]*)"?|([^\s"]+))')
_QUOTES = str.maketrans(dict.fromkeys("“”„«»\uff02", '"'))


@dataclass(frozen=True, slots=True)
class Needle:
    """A term of a clause, `offset` positions behind its first one.

    `word` is the raw word, if its stems may match. `is_prefix`: terms that begin with `lexeme` match as well.
    """

    lexeme: str
    offset: int
    word: str | None = None
    is_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Clause:
    """Terms that stand together: a word, a path, a phrase."""

    needles: tuple[Needle, ...]
    is_negated: bool


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """Alternatives, of whose clauses each must match."""

    alternatives: tuple[tuple[Clause, ...], ...]

    @property
    def needles(self) -> Iterator[Needle]:
        """The terms that a matching text may contain."""
        for clauses in self.alternatives:
            for clause in clauses:
                if not clause.is_negated:
                    yield from clause.needles

    def list_words(self) -> list[str]:
        """List the words whose stems a language has."""
        clauses = (clause for clauses in self.alternatives for clause in clauses)
        return sorted({needle.word for clause in clauses for needle in clause.needles if needle.word})

    def format_tsquery(self, stems: Mapping[str, list[str]] | None = None) -> str:
        """Format a query for PostgreSQL, empty without terms.

        `stems` of words match as prefixes. A word without stems does not count, beside words that count.
        """
        literal = self._format(_format_lexeme)
        if stems is None:
            return literal
        by_stem = self._format(lambda needle: _format_stems(needle, stems))
        return f"{literal} | {by_stem}" if literal and by_stem else literal or by_stem

    def _format(self, format_needle: Callable[[Needle], str]) -> str:
        alternatives: list[str] = []
        for clauses in self.alternatives:
            formatted = [text for clause in clauses if (text := _format_clause(clause, format_needle))]
            if formatted:
                alternatives.append(" & ".join(formatted))
        return " | ".join(alternatives)


def parse_query(query: str) -> SearchQuery:
    """Parse words, "phrases", "or" and -exclusions.

    Any text is a query.
    """
    alternatives: list[list[Clause]] = [[]]
    is_or_pending = False
    for minus, phrase, word in _CLAUSE.findall(query.translate(_QUOTES)):
        if word.casefold() == "or" and not minus and alternatives[-1] and not is_or_pending:
            is_or_pending = True
            continue
        if not (needles := tuple(_list_needles(phrase or word))):
            continue
        if is_or_pending:
            alternatives.append([])
            is_or_pending = False
        alternatives[-1].append(Clause(needles, is_negated=bool(minus)))
    return SearchQuery(tuple(tuple(clauses) for clauses in alternatives if clauses))


def _list_needles(text: str) -> Iterator[Needle]:
    """Yield the terms of a clause, as in `build_search_vector`."""
    position = 0
    for kind, term in list_terms(text):
        if kind != "run":
            yield Needle(fold_word(term)[0], position, term if kind == "word" else None)
            position += 1
        elif len(term) == 1:
            yield Needle(term, position, is_prefix=True)
            position += 1
        else:
            for index in range(len(term) - 1):
                yield Needle(term[index : index + 2], position + index)
            position += len(term)


def _format_clause(clause: Clause, format_needle: Callable[[Needle], str]) -> str:
    text, previous = "", 0
    for needle in clause.needles:
        if formatted := format_needle(needle):
            text += f" <{needle.offset - previous}> {formatted}" if text else formatted
            previous = needle.offset
    if not text:
        return ""
    return f"!({text})" if clause.is_negated else text


def _format_lexeme(needle: Needle) -> str:
    return f"'{needle.lexeme}':*" if needle.is_prefix else f"'{needle.lexeme}'"


def _format_stems(needle: Needle, stems: Mapping[str, list[str]]) -> str:
    if needle.word is None:
        return _format_lexeme(needle)
    prefixes = [f"'{lexeme}':*" for stem in stems.get(needle.word, ()) if (lexeme := fold_word(stem)[0])]
    return prefixes[0] if len(prefixes) == 1 else f"({' | '.join(prefixes)})" if prefixes else ""
