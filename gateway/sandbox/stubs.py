"""Declarations of tools as Python functions, made from their JSON schemas."""

import builtins
import keyword
import re
from collections.abc import Mapping
from typing import Any, cast

from gateway.domain.messages import JsonObject, ToolSpec

PRELUDE = "from typing import Any, Literal, TypedDict"
_MAX_DEPTH = 4
_MAX_PROPERTIES = 40
_MAX_CHOICES = 30
_MAX_DOC_CHARS = 600
_MAX_FIELD_DOC_CHARS = 160
_NOT_IN_NAME = re.compile(r"\W+", re.ASCII)
_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None", "object": "dict"}
_RESERVED = frozenset({"Any", "Literal", "TypedDict"})
_TAKEN = _RESERVED.union(
    dir(builtins), ("asyncio", "datetime", "json", "math", "os", "pathlib", "random", "re", "sys", "time", "typing")
)
"""Names that programs need.

A function of such a name would hide it from all of them.
"""
_TYPE_NAME = re.compile(r"(.+)_(?:result|arguments)(?:_\d+)?")
ANY = "Any"


def name_functions(tools: tuple[ToolSpec, ...]) -> dict[str, str]:
    """Map a function name to each tool, in order.

    Names that are no identifiers, or that programs need for something else, are changed; equal ones get a number.
    """
    functions: dict[str, str] = {}
    bases = [_to_function_name(tool.name) for tool in tools]
    known = frozenset(bases)
    for tool, base in zip(tools, bases, strict=True):
        if (match := _TYPE_NAME.fullmatch(base)) and match[1] in known:
            base = f"{base}_"  # the name of a type of that function
        name, number = base, 1
        while name in functions:
            number += 1
            name = f"{base}_{number}"
        functions[name] = tool.name
    return functions


def _to_function_name(name: str) -> str:
    """Make the name of a function from the name of a tool.

    The type checker does not show programs names that begin with an underscore.
    """
    name = _NOT_IN_NAME.sub("_", name) or "_"
    if name[0] == "_":
        name = f"tool{name}"
    elif name[0].isdigit():
        name = f"tool_{name}"
    return f"{name}_" if keyword.iskeyword(name) or name in _TAKEN else name


def _is_plain(name: str) -> bool:
    """Return whether a property can be a parameter or a field."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and name not in _RESERVED


def build_stub(function: str, tool: ToolSpec) -> str:
    """Declare a tool as a coroutine function with keyword arguments.

    A tool without an output schema returns text.
    """
    types = _TypeWriter(f"{function}_result", tool.output_schema or {})
    result = types.write(tool.output_schema) if tool.output_schema else "str"
    arguments = _TypeWriter(f"{function}_arguments", tool.input_schema)
    parameters = arguments.write_parameters()
    signature = f"async def {function}({parameters}) -> {result}:"
    return "\n".join((*types.declarations, *arguments.declarations, signature, _write_docstring(tool), "    ..."))


class _TypeWriter:
    """Writes the types of a schema; objects become declarations of their own."""

    def __init__(self, name: str, root: JsonObject) -> None:
        self._name = name
        self._root = root
        self._count = 0
        self.declarations: list[str] = []

    def write(self, schema: object, depth: int = 0) -> str:
        """Write the type of a schema.

        It is `Any` where Python has no such type.
        """
        if depth > _MAX_DEPTH or not isinstance(schema, dict):
            return ANY
        schema = self._resolve(cast("JsonObject", schema))
        if "const" in schema:
            return _write_literal([schema["const"]])
        if isinstance(choices := schema.get("enum"), list):
            return _write_literal(cast("list[object]", choices))
        for key in ("anyOf", "oneOf"):
            if isinstance(members := schema.get(key), list):
                return _join(self.write(member, depth + 1) for member in cast("list[object]", members)[:_MAX_CHOICES])
        kind = schema.get("type")
        if isinstance(kind, list):
            return _join(self.write(dict(schema, type=name), depth + 1) for name in cast("list[object]", kind))
        if kind == "array":
            return f"list[{self.write(schema.get('items'), depth + 1)}]"
        if kind == "object" or "properties" in schema:
            return self._write_object(schema, depth)
        return _TYPES.get(str(kind), ANY)

    def write_parameters(self) -> str:
        """Write the keyword parameters of a function.

        Properties that are no identifiers are passed with `**`.
        """
        schema = self._resolve(self._root)
        required = _list_required(schema)
        properties = _get_properties(schema)
        parts: list[str] = []
        has_others = len(properties) > _MAX_PROPERTIES or schema.get("additionalProperties") not in (None, False)
        for name, value in list(properties.items())[:_MAX_PROPERTIES]:
            if not _is_plain(name):
                has_others = True
                continue
            parts.append(f"{name}: {self.write(value, 1)}" + ("" if name in required else " = ..."))
        others = ["**others: Any"] if has_others else []
        return ", ".join((*(("*", *parts) if parts else ()), *others))

    def _write_object(self, schema: JsonObject, depth: int) -> str:
        properties = _get_properties(schema)
        if not properties or len(properties) > _MAX_PROPERTIES:
            values = schema.get("additionalProperties")
            return f"dict[str, {self.write(values, depth + 1) if values is not None else ANY}]"
        required = _list_required(schema)
        self._count += 1
        name = self._name if self._count == 1 else f"{self._name}_{self._count}"
        fields = {key: self.write(value, depth + 1) for key, value in properties.items()}
        total = "" if required.issuperset(fields) else ", total=False"
        if all(map(_is_plain, fields)):
            lines = "\n".join(f"    {key}: {kind}" for key, kind in fields.items())
            self.declarations.append(f"class {name}(TypedDict{total}):\n{lines}")
        else:
            items = ", ".join(f"{key!r}: {kind}" for key, kind in fields.items())
            self.declarations.append(f'{name} = TypedDict("{name}", {{{items}}}{total})')
        return name

    def _resolve(self, schema: JsonObject) -> JsonObject:
        """Follow local references, up to a few."""
        for _ in range(_MAX_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            schema = self._find(reference)
        return {}

    def _find(self, reference: str) -> JsonObject:
        found: object = self._root
        for part in reference.removeprefix("#").strip("/").split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if key:
                found = cast("JsonObject", found).get(key) if isinstance(found, dict) else None
        return cast("JsonObject", found) if isinstance(found, dict) and reference.startswith("#/") else {}


def _write_docstring(tool: ToolSpec) -> str:
    """Write description and parameters as text that cannot end the docstring."""
    text = _shorten(tool.description, _MAX_DOC_CHARS)
    for name, schema in list(_get_properties(tool.input_schema).items())[:_MAX_PROPERTIES]:
        described = cast("JsonObject", schema).get("description") if isinstance(schema, dict) else None
        if isinstance(described, str) and described:
            text += f"\n    {_shorten(name, _MAX_FIELD_DOC_CHARS)}: {_shorten(described, _MAX_FIELD_DOC_CHARS)}"
    return f'    """{text}"""'


def _shorten(text: str, length: int) -> str:
    text = " ".join(text.split()).replace("\\", "/").replace('"', "'").encode(errors="replace").decode()
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _write_literal(choices: list[object]) -> str:
    values = [value for value in choices if value is None or isinstance(value, str | int)]
    if not values or len(values) < len(choices) or len(values) > _MAX_CHOICES:
        return ANY
    return f"Literal[{', '.join(map(repr, values))}]"


def _join(types: Any) -> str:
    members = list(dict.fromkeys(types))
    return ANY if ANY in members or not members else " | ".join(members)


def _get_properties(schema: Mapping[str, object]) -> dict[str, object]:
    properties = schema.get("properties")
    return cast("dict[str, object]", properties) if isinstance(properties, dict) else {}


def _list_required(schema: Mapping[str, object]) -> set[str]:
    required = schema.get("required")
    return {str(name) for name in cast("list[object]", required)} if isinstance(required, list) else set()
