"""Templates of texts, JSON bodies and URLs (RFC 6570), with encoded values."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import quote, unquote

from tools_server.http_tools.errors import CallFailed

_ARGUMENT_NAME = r"[A-Za-z_][A-Za-z0-9_-]{0,63}"
ARGUMENT_NAME = re.compile(_ARGUMENT_NAME)
_PLACEHOLDER = re.compile(
    r"\{(\{[^{}]*\})\}|\{(?:(?:(secret|base64)\.)?(" + _ARGUMENT_NAME + r")|(" + _ARGUMENT_NAME + r")\*)\}"
)
_EXPRESSION = re.compile(r"\{([^{}]*)\}")
_VARIABLE = re.compile("(" + _ARGUMENT_NAME + r")(\*|:[1-9][0-9]{0,3})?")
_URL_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~:/?@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*")
_URL_START = re.compile(r"(https?://[^/?#{}@\\\s]+)(.*)", re.DOTALL | re.IGNORECASE)
_MAX_NESTING = 20

ABSENT = object()
"""Value of an argument that the call does not have."""


class TemplateInvalid(ValueError):
    """A template that cannot be parsed. The message is public."""


class Placeholder(NamedTuple):
    """An argument, a secret, or a secret in base64.

    With `explode`, the members of an object are `name=value`.
    """

    kind: Literal["argument", "secret", "base64"]
    name: str
    explode: bool = False


class CallValues:
    """Arguments and secrets of one call."""

    def __init__(self, arguments: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._secrets = secrets

    def get_value(self, placeholder: Placeholder) -> Any:
        """Return a JSON value, or `ABSENT`.

        An argument that is null is absent.
        """
        if placeholder.kind == "argument":
            value = self._arguments.get(placeholder.name)
            return ABSENT if value is None else value
        try:
            secret = self._secrets[placeholder.name]
        except KeyError:
            raise CallFailed(f"The secret {placeholder.name!r} of this tool is not set.") from None
        return base64.b64encode(secret.encode()).decode() if placeholder.kind == "base64" else secret

    def get_text(self, placeholder: Placeholder, *, encoded: bool = False) -> str | None:
        """Return a value as text; None if it is absent."""
        value = self.get_value(placeholder)
        if value is ABSENT:
            return None
        write = _to_encoded_text if encoded and placeholder.kind == "argument" else to_text
        if placeholder.explode and isinstance(value, dict):
            members = cast("dict[str, Any]", value).items()
            return ",".join(f"{write(name)}={write(member)}" for name, member in members)
        return write(value)


def to_text(value: Any) -> str:
    """Write a JSON value in OpenAPI's style "simple"."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        return ",".join(map(to_text, cast("list[Any]", value)))
    if isinstance(value, dict):
        return ",".join(f"{name},{to_text(member)}" for name, member in cast("dict[str, Any]", value).items())
    return json.dumps(value)


def _to_encoded_text(value: Any) -> str:
    """Write a JSON value like `to_text`, whose commas stay between encoded items."""
    if isinstance(value, list):
        return ",".join(encode(to_text(item)) for item in cast("list[Any]", value))
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value).items()
        return ",".join(f"{encode(name)},{encode(to_text(member))}" for name, member in members)
    return encode(to_text(value))


def encode(text: str) -> str:
    """Percent-encode everything but unreserved characters."""
    try:
        return quote(text, safe="")
    except UnicodeEncodeError:
        raise CallFailed("An argument has characters that are not valid Unicode.") from None


class TextTemplate:
    """A text with placeholders. `{{name}}` is the text `{name}`."""

    def __init__(self, text: str) -> None:
        self.parts: list[str | Placeholder] = []
        position = 0
        for match in _PLACEHOLDER.finditer(text):
            self.parts.append(text[position : match.start()])
            name = match[3] or match[4]
            self.parts.append(match[1] or Placeholder(cast("Any", match[2] or "argument"), name, bool(match[4])))
            position = match.end()
        self.parts = [part for part in (*self.parts, text[position:]) if part != ""]

    @property
    def placeholders(self) -> list[Placeholder]:
        return [part for part in self.parts if isinstance(part, Placeholder)]

    def render(self, values: CallValues, *, encoded: bool = False) -> str | None:
        """Fill in the placeholders; None if the value of one is absent."""
        texts: list[str] = []
        for part in self.parts:
            if isinstance(part, Placeholder):
                text = values.get_text(part, encoded=encoded)
                if text is None:
                    return None
                texts.append(text)
            else:
                texts.append(part)
        return "".join(texts)


class BodyTemplate:
    """A JSON value whose texts have placeholders.

    Members and items whose argument is absent are left out.
    """

    def __init__(self, template: Any) -> None:
        self.placeholders: list[Placeholder] = []
        self._template = self._compile(template, 0)

    def _compile(self, node: Any, depth: int) -> Any:
        if depth > _MAX_NESTING:
            raise TemplateInvalid(f"it is nested more than {_MAX_NESTING} levels deep")
        if isinstance(node, str):
            compiled = TextTemplate(node)
            self.placeholders.extend(compiled.placeholders)
            return compiled
        if isinstance(node, dict):
            members = cast("dict[str, Any]", node).items()
            return {name: self._compile(member, depth + 1) for name, member in members}
        if isinstance(node, list):
            return [self._compile(item, depth + 1) for item in cast("list[Any]", node)]
        return node

    def render(self, values: CallValues) -> Any:
        """Fill in the template; `ABSENT` if nothing remains."""
        return self._render(self._template, values)

    def _render(self, node: Any, values: CallValues) -> Any:
        if isinstance(node, TextTemplate):
            if len(node.parts) == 1 and isinstance(node.parts[0], Placeholder):
                return values.get_value(node.parts[0])
            text = node.render(values)
            return ABSENT if text is None else text
        if isinstance(node, dict):
            rendered = {name: self._render(part, values) for name, part in cast("dict[str, Any]", node).items()}
            return {name: part for name, part in rendered.items() if part is not ABSENT}
        if isinstance(node, list):
            items = (self._render(item, values) for item in cast("list[Any]", node))
            return [item for item in items if item is not ABSENT]
        return node


class _Variable(NamedTuple):
    name: str
    explode: bool
    max_length: int | None


class _Expression(NamedTuple):
    operator: str
    variables: tuple[_Variable, ...]


_OPERATORS = {"": ("", ","), ".": (".", "."), "/": ("/", "/"), ";": (";", ";"), "?": ("?", "&"), "&": ("&", "&")}
"""First character and separator of each operator.

`+` and `#` are not allowed: their values are not encoded.
"""
_NAMED = (";", "?", "&")


class UrlTemplate:
    """A URL by RFC 6570, whose scheme and host are fixed."""

    def __init__(self, text: str) -> None:
        match = _URL_START.fullmatch(text)
        if match is None:
            raise TemplateInvalid("must begin with http:// or https:// and a host without placeholders or a login")
        self.base, rest = match[1], match[2]
        self.parts: list[str | _Expression | Placeholder] = []
        position = 0
        for expression in _EXPRESSION.finditer(rest):
            self._add_literal(rest[position : expression.start()])
            self.parts.append(_parse_expression(expression[1]))
            position = expression.end()
        self._add_literal(rest[position:])
        self._check_path()

    def _add_literal(self, text: str) -> None:
        if not _URL_LITERAL.fullmatch(text):
            raise TemplateInvalid("has characters that must be percent-encoded, or a fragment")
        if text:
            self.parts.append(text)

    def _check_path(self) -> None:
        literals = "".join(part if isinstance(part, str) else "x" for part in self.parts)
        path = literals.partition("?")[0]
        if (path and not path.startswith(("/", "x", ";"))) or (path[:1] == "x" and not self._begins_with_separator()):
            raise TemplateInvalid("the path must begin with /")
        if has_dot_segment(path):
            raise TemplateInvalid("has a path segment . or ..")

    def _begins_with_separator(self) -> bool:
        first = self.parts[0]
        return isinstance(first, _Expression) and first.operator in ("/", "?", ";")

    @property
    def placeholders(self) -> list[Placeholder]:
        secrets = [part for part in self.parts if isinstance(part, Placeholder)]
        return [*secrets, *(Placeholder("argument", name) for name in self.list_variables())]

    def list_variables(self, *, path_only: bool = False) -> list[str]:
        """List the arguments, or those of the path."""
        expressions = [part for part in self._path_parts() if isinstance(part, _Expression)]
        if not path_only:
            expressions = [part for part in self.parts if isinstance(part, _Expression)]
        return [variable.name for part in expressions for variable in part.variables]

    def _path_parts(self) -> Iterator["str | _Expression | Placeholder"]:
        for part in self.parts:
            if isinstance(part, str) and "?" in part:
                yield part.partition("?")[0]
                return
            if isinstance(part, _Expression) and part.operator in ("?", "&"):
                return
            yield part

    def render(self, values: CallValues) -> str:
        """Expand the template.

        Raises:
            CallFailed: a value would change the path's structure, or is missing.
        """
        rendered = [self._render_part(part, values) for part in self.parts]
        url = "".join(rendered)
        if has_dot_segment(url.partition("?")[0]):
            raise CallFailed("An argument in the path is '.' or '..', or has such a part.")
        return self.base + url

    def _render_part(self, part: "str | _Expression | Placeholder", values: CallValues) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Placeholder):
            return encode(values.get_text(part) or "")
        texts = [text for variable in part.variables if (text := _expand(part.operator, variable, values)) is not None]
        first, separator = _OPERATORS[part.operator]
        return first + separator.join(texts) if texts else ""


def _parse_expression(text: str) -> "_Expression | Placeholder":
    if (secret := _PLACEHOLDER.fullmatch("{" + text + "}")) is not None and secret[2]:
        return Placeholder(cast("Any", secret[2]), secret[3])
    operator = text[:1] if text[:1] in _OPERATORS else ""
    variables: list[_Variable] = []
    for specification in text[len(operator) :].split(","):
        match = _VARIABLE.fullmatch(specification)
        if match is None:
            raise TemplateInvalid(f"{{{text[:80]}}} is not a placeholder that is supported")
        modifier = match[2] or ""
        variables.append(_Variable(match[1], modifier == "*", int(modifier[1:]) if modifier.startswith(":") else None))
    return _Expression(operator, tuple(variables))


def _expand(operator: str, variable: _Variable, values: CallValues) -> str | None:
    """Expand one variable; None if it is absent."""
    value = values.get_value(Placeholder("argument", variable.name))
    is_path = operator not in ("?", "&")
    if value is ABSENT:
        if is_path:
            raise CallFailed(f"The argument {variable.name!r} is required: it is part of the path.")
        return None
    pairs = _list_pairs(value)
    if pairs is not None and not pairs:
        if is_path:
            raise CallFailed(f"The argument {variable.name!r} must not be empty: it is part of the path.")
        return None
    if pairs is None:
        text = to_text(value)[: variable.max_length]
        if is_path and not text:
            raise CallFailed(f"The argument {variable.name!r} must not be empty: it is part of the path.")
        return _name_value(operator, variable.name, encode(text))
    separator = _OPERATORS[operator][1]
    if variable.explode:
        if isinstance(value, list):
            texts = [_name_value(operator, variable.name, item) for _, item in pairs]
        else:
            texts = [f"{name}={item}" for name, item in pairs]
        return separator.join(texts)
    flat = [text for name, item in pairs for text in ((item,) if name is None else (name, item))]
    return _name_value(operator, variable.name, ",".join(flat))


def _name_value(operator: str, name: str, value: str) -> str:
    if operator not in _NAMED:
        return value
    return name if operator == ";" and not value else f"{name}={value}"


def _list_pairs(value: Any) -> list[tuple[str | None, str]] | None:
    """List encoded names and values of a list or an object."""
    if isinstance(value, list):
        return [(None, encode(to_text(item))) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        return [(encode(name), encode(to_text(item))) for name, item in cast("dict[str, Any]", value).items()]
    return None


def has_dot_segment(path: str) -> bool:
    """Return whether a path has a segment of dots, also encoded."""
    decoded = path
    for _ in range(3):  # servers decode more than once
        if any(segment.partition(";")[0] in (".", "..") for segment in re.split(r"[/\\]", decoded)):
            return True
        again = unquote(decoded)
        if again == decoded:
            break
        decoded = again
    return False
