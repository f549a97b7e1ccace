"""Fields of queries and forms in OpenAPI's styles."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from gateway_runtime.http_tools.definitions import WireField
from tools_server.http_tools.errors import CallFailed
from tools_server.http_tools.templates import (
    ABSENT,
    ARGUMENT_NAME,
    CallValues,
    Placeholder,
    TemplateInvalid,
    TextTemplate,
    encode,
    to_text,
)

_MAX_DEPTH = 8
_SEPARATORS = {"form": ",", "spaceDelimited": "%20", "pipeDelimited": "%7C"}


class CompiledField:
    """A field whose template is parsed."""

    def __init__(self, field: WireField) -> None:
        """Raises:
        TemplateInvalid: the field has not exactly one of argument and value.
        """
        if (field.argument is None) == (field.value is None):
            raise TemplateInvalid("needs either an argument or a value")
        if field.argument is not None and not ARGUMENT_NAME.fullmatch(field.argument):
            raise TemplateInvalid(f"{field.argument[:80]!r} is not a name of an argument")
        self.field = field
        self._text = None if field.value is None else TextTemplate(field.value)

    @property
    def placeholders(self) -> list[Placeholder]:
        return self._text.placeholders if self._text else [Placeholder("argument", self.field.argument or "")]

    def render(self, values: CallValues) -> list[tuple[str, str]]:
        """List the encoded names and values that the field sends."""
        value = self.get_value(values)
        if value is ABSENT:
            return []
        return self._render_value(value) if self._text is None else [(encode(self.field.name), encode(value))]

    def get_value(self, values: CallValues) -> Any:
        """Return the argument, or the text; `ABSENT` without an argument of it."""
        if self._text is None:
            return values.get_value(Placeholder("argument", self.field.argument or ""))
        text = self._text.render(values)
        return ABSENT if text is None else text

    def _render_value(self, value: Any) -> list[tuple[str, str]]:
        name = encode(self.field.name)
        if self.field.style == "json":
            return [(name, encode(json.dumps(value, ensure_ascii=False)))]
        if not isinstance(value, list | dict):
            return [(name, encode(to_text(value)))]
        if self.field.style == "deepObject":
            return list(_flatten(name, cast(Any, value), 0))
        if isinstance(value, list):
            items = [encode(to_text(item)) for item in cast("list[Any]", value)]
            if self.field.explode and self.field.style == "form":
                return [(name, item) for item in items]
            return [(name, _SEPARATORS[self.field.style].join(items))] if items else []
        members = [(encode(key), encode(to_text(member))) for key, member in cast("dict[str, Any]", value).items()]
        if self.field.explode:
            return members
        flat = [text for member in members for text in member]
        return [(name, _SEPARATORS[self.field.style].join(flat))] if flat else []


def _flatten(name: str, value: Any, depth: int) -> Iterable[tuple[str, str]]:
    """Yield `name[key][0]=…`, encoded, for each value inside of an object."""
    if depth > _MAX_DEPTH:
        raise CallFailed(f"An argument is nested more than {_MAX_DEPTH} levels deep.")
    if isinstance(value, dict):
        for key, member in cast("dict[str, Any]", value).items():
            yield from _flatten(f"{name}%5B{encode(key)}%5D", member, depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            yield from _flatten(f"{name}%5B{index}%5D", item, depth + 1)
    elif value is not None:
        yield name, encode(to_text(value))


def render_fields(fields: Sequence[CompiledField], values: CallValues) -> str:
    """Write all fields as `name=value&…`.

    Raises:
        CallFailed: a member of an argument would set a field of another name.
    """
    declared = {encode(compiled.field.name) for compiled in fields}
    pairs: list[tuple[str, str]] = []
    for compiled in fields:
        own = encode(compiled.field.name)
        for name, value in compiled.render(values):
            if name != own and name in declared:
                raise CallFailed(f"An argument has a member {name[:100]!r}, which is another field of the request.")
            pairs.append((name, value))
    return "&".join(f"{name}={value}" for name, value in pairs)
