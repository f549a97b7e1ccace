"""Forms made from a JSON schema."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from nicegui import ui

from gateway_console.components.field_schema import FieldSchema, find_choices, find_item_choices, resolve_schema

JsonObject = dict[str, Any]
Reader = Callable[[], object]
_MAX_FIELDS = 50
_MAX_DEPTH = 3
_MAX_CHOICES = 500
_INPUT_TYPES = {"date": "date", "time": "time", "email": "email", "uri": "url", "password": "password"}


class FormError(Exception):
    """A field has no valid value."""


class SchemaForm:
    """The fields of an object's schema.

    Texts, numbers, booleans, choices and objects have inputs of their own; everything else is entered as JSON.
    """

    def __init__(self, schema: JsonObject, values: JsonObject | None = None) -> None:
        root = FieldSchema(schema, schema)
        with ui.element("div").classes("form"):
            self._reader = _draw_object("", root, values, depth=0, is_required=True)
        self._initial: JsonObject | None = None
        with suppress(FormError):  # a required field of the first values may be empty
            self._initial = self.read()

    def read(self) -> JsonObject:
        """Return the values; fields that were left empty are absent.

        Raises:
            FormError: a required field is empty, or a field has no valid value.
        """
        value = self._reader()
        if not isinstance(value, dict):
            raise FormError("The arguments must be a JSON object.")
        return cast(JsonObject, value)

    def read_if_changed(self) -> JsonObject | None:
        """Return the values if a person has changed one.

        Raises:
            FormError: see `read`.
        """
        value = self.read()
        return None if value == self._initial else value

    def read_changes(self) -> JsonObject:
        """Return the fields that a person has changed.

        Those that were emptied are None.

        Raises:
            FormError: see `read`.
        """
        value, initial = self.read(), self._initial or {}
        return {name: value.get(name) for name in value | initial if value.get(name) != initial.get(name)}


def _draw_object(path: str, schema: FieldSchema, value: object, *, depth: int, is_required: bool) -> Reader:
    properties = cast(JsonObject, schema.own.get("properties") or {})
    if len(properties) > _MAX_FIELDS or depth > _MAX_DEPTH or (not properties and _is_open(schema.own)):
        return _draw_json(path, path or "Arguments", value, "", is_required=False, empty={} if is_required else None)
    values = cast(JsonObject, value) if isinstance(value, dict) else {}
    required = {str(name) for name in schema.own.get("required") or ()}
    readers = {
        name: _draw_field(
            f"{path}.{name}" if path else name,
            resolve_schema(field, schema.root),
            values.get(name),
            depth=depth,
            is_required=name in required,
        )
        for name, field in properties.items()
    }
    fieldless = {name: each for name, each in values.items() if name not in properties}

    def read() -> object:
        found = fieldless | {name: each for name, reader in readers.items() if (each := reader()) is not None}
        if not found and not is_required:
            return None
        for name in required & readers.keys() - found.keys():
            raise FormError(f"{f'{path}.{name}' if path else name}: enter a value.")
        return found

    return read


def _is_open(schema: JsonObject) -> bool:
    """Return whether an object without properties may have any."""
    return schema.get("additionalProperties") is not False and bool(
        schema.get("additionalProperties") or schema.get("patternProperties")
    )


def _draw_field(path: str, schema: FieldSchema, value: object, *, depth: int, is_required: bool) -> Reader:
    own = schema.own
    label = str(own.get("title") or path.rpartition(".")[2])[:200] + (" *" if is_required else "")
    hint = str(own.get("description") or "")[:300]
    default = own.get("default") if value is None else value
    if choices := find_choices(schema):
        return _draw_choice(label, choices, default, hint)
    match own.get("type"):
        case "boolean":
            return _draw_boolean(label, default, hint, is_required=is_required)
        case "integer" | "number" as kind:
            return _draw_number(path, label, own, default, hint, is_integer=kind == "integer")
        case "string":
            return _draw_text(label, own, default, hint)
        case "array" if item_choices := find_item_choices(schema):
            return _draw_choices(label, item_choices, default, hint)
        case "object" if own.get("properties"):
            with ui.element("fieldset").classes("nested"):
                with ui.element("legend"):
                    ui.label(label)
                if hint:
                    ui.label(hint).classes("muted text-sm")
                return _draw_object(path, schema, default, depth=depth + 1, is_required=is_required)
        case _:
            return _draw_json(path, label, default, hint, is_required=is_required)


def _draw_choice(label: str, choices: list[tuple[object, str]], default: object, hint: str) -> Reader:
    names = dict(enumerate(name for _, name in choices[:_MAX_CHOICES]))
    values = [value for value, _ in choices]
    chosen = values.index(default) if default in values[:_MAX_CHOICES] else None
    select = ui.select(names, label=label, value=chosen, clearable=True)
    _add_hint(select, hint)
    return lambda: None if select.value is None else values[int(select.value)]


def _draw_choices(label: str, choices: list[tuple[object, str]], default: object, hint: str) -> Reader:
    names = dict(enumerate(name for _, name in choices[:_MAX_CHOICES]))
    values = [value for value, _ in choices]
    chosen = [values.index(each) for each in cast(list[object], default) if each in values] if default else []
    select = ui.select(names, label=label, value=chosen, multiple=True, clearable=True)
    _add_hint(select, hint)
    return lambda: [values[int(each)] for each in cast(list[int], select.value or [])] or None


def _draw_boolean(label: str, default: object, hint: str, *, is_required: bool) -> Reader:
    if is_required or isinstance(default, bool):
        checkbox = ui.checkbox(label, value=bool(default))
        if hint:
            ui.label(hint).classes("muted text-sm")
        return lambda: checkbox.value
    return _draw_choice(label, [(True, "yes"), (False, "no")], None, hint)


def _draw_number(path: str, label: str, own: JsonObject, default: object, hint: str, *, is_integer: bool) -> Reader:
    value = default if isinstance(default, int | float) else None
    number = ui.number(label, value=value, step=1 if is_integer else None)
    for name, bound in (("min", own.get("minimum")), ("max", own.get("maximum"))):
        if isinstance(bound, int | float):
            number.props.set_optional(name, bound)
    _add_hint(number, hint)

    def read() -> object:
        if number.value is None:
            return None
        if is_integer and number.value != int(number.value):
            raise FormError(f"{path}: enter a whole number.")
        return int(number.value) if is_integer else number.value

    return read


def _draw_text(label: str, own: JsonObject, default: object, hint: str) -> Reader:
    value = "" if default is None else str(default)
    kind = _INPUT_TYPES.get(str(own.get("format")))
    text = ui.input(label, value=value).props(f"type={kind}") if kind else ui.textarea(label, value=value)
    if kind in ("date", "time"):
        text.props("stack-label")
    elif kind is None:
        text.props("autogrow rows=1")
    _add_hint(text, hint)
    return lambda: text.value or None


def _draw_json(path: str, label: str, default: object, hint: str, *, is_required: bool, empty: object = None) -> Reader:
    value = "" if default is None else json.dumps(default, indent=2, ensure_ascii=False)
    editor = ui.textarea(f"{label} (JSON)", value=value).props("autogrow rows=1 input-class=plain")
    _add_hint(editor, hint)

    def read() -> object:
        text = str(editor.value or "").strip()
        if not text:
            return empty
        try:
            return json.loads(text)
        except ValueError:
            raise FormError(f"{path or label}: this is not JSON.") from None

    return read


def _add_hint(element: ui.element, hint: str) -> None:
    element.props("outlined dense").classes("w-full")
    if hint:
        element.props.set_optional("hint", hint)  # `props()` would parse the text
        element.props("hide-hint=false")
