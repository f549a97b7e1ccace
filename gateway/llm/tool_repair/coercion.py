"""Makes arguments fit a tool's schema where it is plain what was meant: what fits already is left as it is."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, cast

import msgspec
from jsonschema.exceptions import (
    SchemaError,
    best_match,  # pyright: ignore[reportUnknownVariableType]
)

from gateway.common.json_schema import SchemaNotCheckable, check_schema, compile_schema, iterate_errors
from gateway.domain.messages import JsonObject
from gateway.llm.tool_repair.json_repair import JsonRepairError, LenientJsonParser, is_list, is_object
from gateway.llm.tool_repair.tool_names import normalize_name

_MAX_STEPS = 5_000
_MAX_SCHEMA_DEPTH = 80
_MAX_PROBLEMS = 3
_MAX_SHOWN_CHARS = 200

_NUMBER = re.compile(r"\s*[+-]?(?:\d{1,18}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,2})?\s*", re.ASCII)
_BOOLEAN_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NULL_WORDS = ("", "null", "none", "undefined")


class SchemaCoercer:
    """Fits arguments to one schema. `how` tells what had to be done.

    A schema that cannot be checked (it is not valid, or refers to what is not in it) lets everything through: the
    tool's own server is the judge then.
    """

    def __init__(self, schema: JsonObject) -> None:
        self.repairs: list[str] = []
        self._schema = schema
        self._validator = _compile_validator(msgspec.json.encode(schema))
        self._steps = 0

    @property
    def properties(self) -> JsonObject | None:
        """The properties by name; None: the schema does not tell them."""
        return self._resolve_references(self._schema).get("properties") if self._validator else None

    @property
    def required(self) -> list[str]:
        return list(self._resolve_references(self._schema).get("required", ())) if self._validator else []

    @property
    def signature(self) -> str:
        """What the tool takes, in a line."""
        required = self.required
        fields = [
            f"{name} ({self._describe_type(schema)}{', required' * (name in required)})"
            for name, schema in (self.properties or {}).items()
            if is_object(schema)
        ]
        return ", ".join(fields) or "no arguments"

    def coerce_arguments(self, arguments: JsonObject) -> Any:
        """The arguments, as near to the schema as is safe. No value is invented, and none is cut."""
        return arguments if self._validator is None else self._coerce_value(arguments, self._schema, "", 0)

    def find_problems(self, arguments: Any) -> list[str]:
        """What does not fit, the first few; empty: everything does."""
        if self._validator is None:
            return []
        found: dict[str, None] = {}
        try:
            for error in iterate_errors(self._validator, arguments):
                found.setdefault(_describe_violation(cast(Any, best_match)([error])))
                if len(found) == _MAX_PROBLEMS:
                    break
        except SchemaNotCheckable:
            return []
        return list(found)

    def _coerce_value(self, value: Any, schema: Any, path: str, depth: int) -> Any:
        self._steps += 1
        if self._steps > _MAX_STEPS or depth > _MAX_SCHEMA_DEPTH or not is_object(schema):
            return value
        schema = self._resolve_references(schema)
        if is_object(value):
            value = self._rename_keys(value, schema, path)
        mixed = any(word in schema for word in ("allOf", "anyOf", "oneOf"))
        if self._is_valid(value, schema):
            if (is_object(value) or is_list(value)) and not mixed:
                return self._coerce_members(value, schema, path, depth)
            return _to_integer(value) if "integer" in _list_types(schema) else value
        for part in schema.get("allOf", ()):
            value = self._coerce_value(value, part, path, depth + 1)
        for option in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            done = len(self.repairs)
            tried = self._coerce_value(value, option, path, depth + 1)
            if self._is_valid(tried, schema):
                return tried
            del self.repairs[done:]
        return self._convert_value(value, schema, path, depth)

    def _convert_value(self, value: Any, schema: JsonObject, path: str, depth: int) -> Any:
        if "enum" in schema or "const" in schema:
            return self._choose_enum_value(value, schema.get("enum", [schema.get("const")]), path)
        best = value
        for kind in _list_types(schema):
            done = len(self.repairs)
            made = self._convert_to_type(kind, value, schema, path, depth)
            if self._is_valid(made, schema):
                return made
            if kind in ("object", "array") and type(made) is type(value):
                best = made
            else:
                del self.repairs[done:]
        return best

    def _convert_to_type(self, kind: str, value: Any, schema: JsonObject, path: str, depth: int) -> Any:
        if kind == "array":
            value = self._convert_to_list(value, path)
        if kind == "object":
            value = self._convert_to_object(value, path)
        if kind in ("array", "object"):
            return self._coerce_members(value, schema, path, depth)
        if is_list(value) and len(value) == 1:
            return self._record_repair(
                path, "a list of one as its item", self._coerce_value(value[0], schema, path, depth + 1)
            )
        made = value
        match kind:
            case "integer" | "number":
                made = _parse_number(value)
            case "boolean" if isinstance(value, (str, int)):
                made = _BOOLEAN_WORDS.get(str(value).strip().lower(), value)
            case "string" if isinstance(value, (bool, int, float)):
                made = msgspec.json.encode(value).decode()
            case "null" if _is_empty_value(value):
                made = None
            case _:
                pass
        return self._record_repair(path, f"as {kind}", made)

    def _convert_to_list(self, value: Any, path: str) -> Any:
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            # What looks like JSON and is none may be cut: it is not made an item.
            value = self._parse_embedded_json(value, path)
        elif _is_empty_value(value):
            value = self._record_repair(path, "as an empty list", []) if value == "" else value
        elif not is_list(value):
            value = self._record_repair(path, "as a list of one", [value])
        return self._record_repair(path, "as a list of one", [value]) if is_object(value) else value

    def _convert_to_object(self, value: Any, path: str) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = self._parse_embedded_json(value, path)
        if is_list(value) and len(value) == 1 and is_object(value[0]):
            value = self._record_repair(path, "a list of one as its item", value[0])
        return value

    def _coerce_members(self, value: Any, schema: JsonObject, path: str, depth: int) -> Any:
        if is_list(value):
            first: list[Any] = schema.get("prefixItems", [])
            schemas = [*first, *[schema.get("items", {})] * max(0, len(value) - len(first))]
            return [
                self._coerce_value(item, wanted, f"{path}[{i}]", depth + 1)
                for i, (item, wanted) in enumerate(zip(value, schemas, strict=False))
            ]
        if not is_object(value):
            return value
        fitted: JsonObject = {}
        for key, item in self._rename_keys(value, schema, path).items():
            self._coerce_member(fitted, key, item, schema, path, depth)
        return fitted

    def _coerce_member(
        self, fitted: JsonObject, key: str, item: Any, schema: JsonObject, path: str, depth: int
    ) -> None:
        where = f"{path}.{key}" if path else key
        wanted = schema.get("properties", {}).get(key)
        if wanted is None:
            wanted = schema.get("additionalProperties", True)
            if wanted is False and "patternProperties" not in schema:
                self.repairs.append(f"{where}: dropped, there is no such field")
                return
        fitted[key] = self._coerce_value(item, wanted, where, depth + 1)
        if (
            _is_empty_value(fitted[key])
            and key not in schema.get("required", ())
            and not self._is_valid(fitted[key], wanted)
        ):
            self.repairs.append(f"{where}: dropped, it is empty")
            del fitted[key]

    def _rename_keys(self, value: JsonObject, schema: JsonObject, path: str) -> JsonObject:
        """Keys that differ from a missing property only in how they are written take its name."""
        properties: JsonObject = schema.get("properties", {})
        stray = [key for key in value if key not in properties]
        if not stray or "patternProperties" in schema or is_object(schema.get("additionalProperties")):
            return value
        names = dict(_keep_unique((normalize_name(key), key) for key in stray))
        missing = dict(_keep_unique((normalize_name(name), name) for name in properties if name not in value))
        renamed = {names[short]: name for short, name in missing.items() if short in names}
        for key, name in renamed.items():
            self.repairs.append(f"{path}.{name}: called {key}" if path else f"{name}: called {key}")
        return {renamed.get(key, key): item for key, item in value.items()}

    def _choose_enum_value(self, value: Any, choices: list[Any], path: str) -> Any:
        if is_list(value) and len(value) == 1:
            value = value[0]
        if value in choices or not isinstance(value, (str, int, float)):
            return value
        for fold in (str.casefold, normalize_name):
            same = [one for one in choices if one is not None and fold(str(one)) == fold(str(value).strip())]
            if len(same) == 1:
                return self._record_repair(path, "as one of the choices", same[0])
        return value

    def _parse_embedded_json(self, text: str, path: str) -> Any:
        try:
            return self._record_repair(
                path, "JSON in a text", LenientJsonParser(text, repairs=self.repairs).parse_document()
            )
        except JsonRepairError:
            return text

    def _record_repair(self, path: str, what: str, made: Any) -> Any:
        self.repairs.append(f"{path or 'the arguments'}: {what}")
        return made

    def _is_valid(self, value: Any, schema: Any) -> bool:
        assert self._validator is not None
        try:
            return next(iterate_errors(self._validator.evolve(schema=schema), value), None) is None
        except SchemaNotCheckable:
            return False

    def _describe_type(self, schema: JsonObject) -> str:
        schema = self._resolve_references(schema)
        if "enum" in schema:
            return f"one of {_shorten_json(schema['enum'])}"
        options = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        kinds = _list_types(schema) or [
            kind for one in options if is_object(one) for kind in _list_types(self._resolve_references(one))
        ]
        return " or ".join(dict.fromkeys(kinds)) or "any"

    def _resolve_references(self, schema: JsonObject) -> JsonObject:
        """The schema with what its `$ref` points to inside the whole; one that points elsewhere says nothing."""
        for _ in range(_MAX_SCHEMA_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            target: Any = self._schema if re.match(r"#(/|$)", reference) else None
            for part in reference[1:].split("/")[1:]:
                target = target.get(_unescape_pointer(part)) if is_object(target) else None
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**target, **rest} if is_object(target) else rest
        return {}


@lru_cache(maxsize=512)
def _compile_validator(schema: bytes) -> Any:
    """None: the schema is not valid."""
    decoded = msgspec.json.decode(schema)
    try:
        check_schema(decoded)
    except (SchemaError, SchemaNotCheckable):
        return None
    return compile_schema(decoded)


def _list_types(schema: JsonObject) -> list[str]:
    kind = schema.get("type")
    if isinstance(kind, str):
        return [kind]
    if is_list(kind):
        return kind
    return ["object"] if "properties" in schema else ["array"] if "items" in schema else []


def _parse_number(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if re.search(r"[.eE]", value) else int(value)
    return _to_integer(value)


def _to_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is_empty_value(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _NULL_WORDS)


def _keep_unique(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The pairs whose first is there once."""
    pairs = list(pairs)
    firsts = [first for first, _ in pairs]
    return (pair for pair in pairs if firsts.count(pair[0]) == 1)


def _unescape_pointer(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _describe_violation(error: Any) -> str:
    """A violation, for the model: the field, what was given, what is expected."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    given, wanted = error.instance, error.validator_value
    match error.validator:
        case "required":
            missing = ", ".join(name for name in wanted if name not in given)
            where = f" in {field}" if field else ""
            shown = ", ".join(map(str, given))[:_MAX_SHOWN_CHARS] or "nothing"
            return f"required and missing{where}: {missing} (given: {shown})"
        case "type":
            kinds = " or ".join(wanted) if is_list(wanted) else wanted
            return f"{field or 'the arguments'}: {_shorten_json(given)} was given, {kinds} is expected"
        case "enum" | "const":
            expected = "one of " * (error.validator == "enum") + _shorten_json(wanted)
            return f"{field or 'the arguments'}: {_shorten_json(given)} was given, {expected} is expected"
        case _:
            return f"{field or 'the arguments'}: {str(error.message)[:_MAX_SHOWN_CHARS]}"


def _shorten_json(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
