"""Linear-time matching of URIs with URI templates (RFC 6570)."""

import re

_PARTS = re.compile(r"(\{[^{}]*\})")
_PREFIX = re.compile(r":([1-9][0-9]{0,3})$")
_MAX_TEMPLATE_LENGTH = 2_000
_OPERATORS = "+#./;?&*"
_ENCODED_CHARACTER_LENGTH = 12
"""Maximum length of one percent-encoded character, in UTF-8."""


class UriMatcher:
    """A URI that is compared with templates.

    All operators and modifiers of RFC 6570 are understood. `{name}` matches at least one character within a path
    segment, `{+name}` any text; an expression with another operator may be absent, as if its variables were undefined.
    Parameters (`{?a,b}`, `{&a}`, `{;a}`) match in any order, but under no other names. A template of more than 2,000
    characters matches nothing.

    The positions that the beginning of a template can reach are the bits of an integer, so that no part of a template
    is tried twice.
    """

    def __init__(self, uri: str) -> None:
        self._end = 1 << len(uri)
        self._characters: dict[str, int] = {}
        for index, character in enumerate(uri):
            self._characters[character] = self._characters.get(character, 0) | 1 << index
        self._any = self._end - 1
        self._in_query = self._except("#")
        self._in_path = self._except("#?")
        self._in_segment = self._except("#?/")
        self._is_encoded = "%" in uri

    def matches(self, template: str) -> bool:
        """Return whether the URI can be made from the template."""
        if len(template) > _MAX_TEMPLATE_LENGTH:
            return False
        positions = 1
        for part in _PARTS.split(template):
            if part.startswith("{") and part.endswith("}"):
                positions = self._skip_expression(positions, part[1:-1])
            else:
                positions = self._skip_literal(positions, part)
            if not positions:
                return False
        return bool(positions & self._end)

    def _except(self, characters: str) -> int:
        """Every position of a character that is none of these."""
        positions = self._any
        for character in characters:
            positions &= ~self._characters.get(character, 0)
        return positions

    def _skip_literal(self, positions: int, text: str) -> int:
        for character in text:
            positions = (positions & self._characters.get(character, 0)) << 1
        return positions

    def _skip_expression(self, positions: int, expression: str) -> int:
        """Every position that an expansion leads to."""
        operator = expression[:1] if expression[:1] in _OPERATORS else ""
        variables = expression[len(operator) :].split(",")
        is_exploded = any(variable.endswith("*") for variable in variables)
        match operator:
            case "":
                prefix = _PREFIX.search(expression) if len(variables) == 1 else None
                if prefix is not None:
                    return self._pass_few(positions, int(prefix[1]))
                return self._pass_run(positions, self._in_segment)
            case "+" | "*":
                return self._skip_text(positions)
            case "#":
                return positions | self._skip_run(self._skip_literal(positions, "#"), self._any)
            case ".":
                return positions | self._skip_run(self._skip_literal(positions, "."), self._in_segment)
            case "/" if is_exploded:
                return positions | self._skip_run(self._skip_literal(positions, "/"), self._in_path)
            case "/":
                for _ in variables:
                    positions |= self._skip_run(self._skip_literal(positions, "/"), self._in_segment)
                return positions
            case _:
                names = None if is_exploded else [_PREFIX.sub("", variable) for variable in variables]
                return positions | self._skip_parameters(positions, operator, names)

    def _skip_parameters(self, positions: int, operator: str, names: list[str] | None) -> int:
        """Every position in the parameters that follow.

        Without `names` they may have any.
        """
        separator, allowed = (";", self._in_segment) if operator == ";" else ("&", self._in_query)
        begins = self._skip_literal(positions, operator)
        if names is not None:
            ends = self._end | self._characters.get("=", 0) | self._characters.get(separator, 0) | self._any & ~allowed
            known = 0
            for name in names:
                after = begins | self._characters.get(separator, 0) << 1
                known |= (self._skip_literal(after, name) & ends) >> len(name)
            begins &= known
            allowed &= ~(self._characters.get(separator, 0) & ~(known >> 1))
        return self._skip_run(begins, allowed)

    def _skip_text(self, positions: int) -> int:
        """Every position after the first one."""
        first = positions & -positions
        return (2 * self._end - 1) & ~(2 * first - 1) if first else 0

    def _pass_run(self, positions: int, allowed: int) -> int:
        """Every position that at least one allowed character leads to."""
        starts = positions & allowed
        # The carry of the addition runs from the first start of each run to the run's end.
        passed = ((starts + allowed) ^ allowed | starts) & allowed
        return passed << 1

    def _skip_run(self, positions: int, allowed: int) -> int:
        """Every position that allowed characters lead to, and the positions themselves."""
        return positions | self._pass_run(positions, allowed)

    def _pass_few(self, positions: int, limit: int) -> int:
        """Every position that 1 to `limit` characters of a segment lead to."""
        reached = (positions & self._in_segment) << 1
        remaining = min(limit * (_ENCODED_CHARACTER_LENGTH if self._is_encoded else 1), self._end.bit_length()) - 1
        step = 1
        while remaining:
            step = min(step, remaining)
            reached |= (reached & self._find_runs(step)) << step
            remaining -= step
            step *= 2
        return reached

    def _find_runs(self, length: int) -> int:
        """Every position where so many characters of a segment follow."""
        runs, step = self._in_segment, 1
        while 2 * step <= length:
            runs, step = runs & runs >> step, 2 * step
        return runs & runs >> (length - step)
