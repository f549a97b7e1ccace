"""Values that fit a JSON schema, for the simulated model."""

import re
from typing import cast

from gateway.domain.messages import JsonObject

_MAX_PARTS = 10_000
_MAX_DEPTH = 30
_PLACE = re.compile(r"\b(?:in|at|for|of)\s+([A-Z][\w-]+(?:\s+[A-Z][\w-]+)*)")
_PLACE_NAMES = ("city", "location", "place", "country", "name")


def generate_arguments(schema: JsonObject, prompt: str) -> JsonObject:
    """Generate arguments of a tool with this schema."""
    arguments = generate_value(schema, prompt)
    return cast(JsonObject, arguments) if isinstance(arguments, dict) else {}


def generate_value(schema: object, prompt: str) -> object:
    """Generate a value that fits a JSON schema.

    It is an example, the default, the first choice, or a simple value. It has a bounded number of parts. What is no
    schema gives a text.
    """
    return _ValueGenerator(schema, prompt).generate(schema)


class _ValueGenerator:
    """Generates the value of one schema."""

    def __init__(self, root: object, prompt: str) -> None:
        self._root = root
        self._prompt = prompt
        self._text = shorten_text(prompt)
        self._remaining_parts = _MAX_PARTS

    def generate(self, schema: object, name: str = "", depth: int = 0) -> object:
        """Generate the value of a property with this name."""
        self._remaining_parts -= 1
        if not isinstance(schema, dict) or self._remaining_parts < 0 or depth > _MAX_DEPTH:
            return "text"
        keywords = cast(JsonObject, schema)
        if isinstance(reference := keywords.get("$ref"), str):
            return self.generate(self._resolve(reference), name, depth + 1)
        for key in ("const", "default"):
            if key in keywords:
                return keywords[key]
        for key in ("examples", "enum"):
            if choices := _list_values(keywords.get(key)):
                return choices[0]
        for key in ("anyOf", "oneOf", "allOf"):
            if choices := _list_values(keywords.get(key)):
                return self.generate(choices[0], name, depth + 1)
        kinds = keywords.get("type", "object" if "properties" in keywords else "string")
        kind = next(iter(_list_values(kinds)), "string") if not isinstance(kinds, str) else kinds
        return self._generate_by_type(kind, keywords, name, depth)

    def _resolve(self, reference: str) -> object:
        """Return the part of the schema that a reference names."""
        part = self._root
        for key in reference.removeprefix("#").split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            part = cast(JsonObject, part).get(key) if isinstance(part, dict) else None
        return part if reference.startswith("#") else None

    def _generate_by_type(self, kind: object, schema: JsonObject, name: str, depth: int) -> object:
        match kind:
            case "object":
                properties = schema.get("properties")
                properties = cast(JsonObject, properties) if isinstance(properties, dict) else {}
                names = _list_values(schema.get("required", list(properties)))
                return {str(n): self.generate(properties.get(str(n), {}), str(n), depth + 1) for n in names}
            case "array":
                count = min(_get_number(schema, "minItems", 1), max(self._remaining_parts, 0))
                return [self.generate(schema.get("items", {}), name, depth + 1) for _ in range(int(count))]
            case "integer" | "number":
                return _get_number(schema, "minimum", 1)
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._generate_text(schema, name)

    def _generate_text(self, schema: JsonObject, name: str) -> str:
        place = _PLACE.search(self._prompt) if name.lower() in _PLACE_NAMES else None
        text = place[1] if place is not None else self._text
        return text[: max(0, int(_get_number(schema, "maxLength", 200)))] or "text"


def _list_values(value: object) -> list[object]:
    return cast(list[object], value) if isinstance(value, list) else []


def _get_number(schema: JsonObject, keyword: str, default: int) -> int | float:
    value: object = schema.get(keyword)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def shorten_text(text: str, max_length: int = 80) -> str:
    """Return a text in one line, cut to a length."""
    flat = " ".join(text.split())
    return flat if len(flat) <= max_length else f"{flat[: max_length - 1]}…"
