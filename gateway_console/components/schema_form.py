"""Forms made from a JSON schema."""

import json
from collections.abc import Callable
from typing import Any, cast

from nicegui import ui

JsonObject = dict[str, Any]
_MAX_FIELDS = 50


class FormError(Exception):
    """A field has no valid value."""


class SchemaForm:
    """The fields of an object's schema.

    Text, numbers, booleans and choices have inputs of their own; everything else is entered as JSON.
    """

    def __init__(self, schema: JsonObject, values: JsonObject | None = None) -> None:
        self._readers: dict[str, Callable[[], object]] = {}
        self._required = {str(name) for name in schema.get("required") or ()}
        properties = cast(JsonObject, schema.get("properties") or {})
        for name, field_schema in list(properties.items())[:_MAX_FIELDS]:
            field = cast(JsonObject, field_schema if isinstance(field_schema, dict) else {})
            default = (values or {}).get(name, field.get("default"))
            self._readers[name] = self._draw_field(name, field, default)

    def read(self) -> JsonObject:
        """Return the values; fields that were left empty are absent.

        Raises:
            FormError: a required field is empty, or a field has no JSON.
        """
        values: JsonObject = {}
        for name, read in self._readers.items():
            value = read()
            if value is not None:
                values[name] = value
            elif name in self._required:
                raise FormError(f"{name}: enter a value.")
        return values

    def _draw_field(self, name: str, schema: JsonObject, default: Any) -> Callable[[], object]:
        label = str(schema.get("title") or name) + (" *" if name in self._required else "")
        hint = str(schema.get("description") or "")[:300]
        kind, choices = schema.get("type"), schema.get("enum")
        if isinstance(choices, list):
            options = cast(list[Any], choices)
            select = ui.select(options, label=label, value=default if default in options else None, clearable=True)
            _add_hint(select, hint)
            return lambda: select.value
        if kind == "boolean":
            checkbox = ui.checkbox(label, value=bool(default))
            return lambda: checkbox.value
        if kind in ("integer", "number"):
            number = ui.number(label, value=default, precision=0 if kind == "integer" else None)
            _add_hint(number, hint)
            return lambda: _read_number(number.value, is_integer=kind == "integer")
        if kind == "string":
            text = ui.textarea(label, value=str(default or "")).props("autogrow rows=1")
            _add_hint(text, hint)
            return lambda: text.value or None
        editor = ui.textarea(f"{label} (JSON)", value="" if default is None else json.dumps(default))
        _add_hint(editor, hint)
        return lambda: _read_json(name, str(editor.value or ""))


def _add_hint(element: ui.element, hint: str) -> None:
    element.props("outlined dense").classes("w-full")
    if hint:
        element.props.set_optional("hint", hint)  # `props()` would parse the text


def _read_number(value: float | None, *, is_integer: bool) -> float | int | None:
    return None if value is None else int(value) if is_integer else value


def _read_json(name: str, text: str) -> object:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise FormError(f"{name}: this is not JSON.") from None
