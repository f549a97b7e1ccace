"""Coerces arguments to a tool's schema where the meaning is unambiguous.

Valid values stay as they are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, cast

import msgspec
from jsonschema.exceptions import (
    best_match,  # pyright: ignore[reportUnknownVariableType]
)

from gateway.domain.messages import JsonObject
from gateway.llm.tool_repair.json_repair import JsonRepairError, LenientJsonParser, is_list, is_object
from gateway.llm.tool_repair.tool_names import normalize_name
from gateway_runtime.json_schema.rules import SchemaInvalid
from gateway_runtime.json_schema.validation import (
    CompiledSchema,
    OperationBudget,
    OperationsExceeded,
    SchemaNotCheckable,
    compile_schema,
)

MAX_OPERATIONS = 20_000
"""Operations of all repairs of a model's answer.

They run in the event loop.
"""
_MAX_STEPS = 5_000
_MAX_SCHEMA_DEPTH = 80
_MAX_PROBLEMS = 3
_PART_OPERATIONS = 5
_MAX_SHOWN_CHARS = 200
_MAX_SHOWN_FIELDS = 50
_MAX_SIGNATURE_LENGTH = 2_000

_NUMBER = re.compile(r"\s*[+-]?(?:\d{1,18}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,2})?\s*", re.ASCII)
_BOOLEAN_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NULL_WORDS = ("", "null", "none", "undefined")


class SchemaCoercer:
    """Coerces arguments to one schema and describes the changes in `repairs`.

    A schema that cannot be checked, because it is invalid, has external references or needs more operations than the
    budget has, accepts everything: the tool's server validates the arguments then.
    """

    def __init__(self, schema: JsonObject, budget: OperationBudget | None = None) -> None:
        self.repairs: list[str] = []
        self._schema = schema
        self._compiled = _compile_or_none(schema)
        self._budget = budget or OperationBudget(MAX_OPERATIONS)
        self._steps = 0
        self._root = self._resolve_root()

    def _resolve_root(self) -> JsonObject:
        """Return the schema without a reference at its root.

        It is empty if it cannot be checked.
        """
        try:
            return self._resolve_references(self._schema) if self._compiled is not None else {}
        except OperationsExceeded:
            self._compiled = None
            return {}

    @property
    def properties(self) -> JsonObject | None:
        """Return the properties by name; None if the schema has none."""
        return self._root.get("properties")

    @property
    def required(self) -> list[str]:
        return list(self._root.get("required", ()))

    @property
    def signature(self) -> str:
        """Describe the expected arguments in one line."""
        required_names = self.required
        fields: list[str] = []
        for name, schema in islice((self.properties or {}).items(), _MAX_SHOWN_FIELDS):
            if is_object(schema):
                try:
                    kind = self._describe_type(schema)
                except OperationsExceeded:
                    kind = "any"
                fields.append(f"{name} ({kind}{', required' * (name in required_names)})")
        return ", ".join(fields)[:_MAX_SIGNATURE_LENGTH] or "no arguments"

    def coerce_arguments(self, arguments: JsonObject) -> JsonObject:
        """Coerce arguments as far as is safe.

        No value is invented or truncated.
        """
        if self._compiled is None:
            return arguments
        try:
            coerced_arguments = self._coerce_value(arguments, self._schema, "", 0)
        except OperationsExceeded:
            self._compiled = None
            self.repairs.clear()
            return arguments
        return coerced_arguments if is_object(coerced_arguments) else arguments

    def find_problems(self, arguments: JsonObject) -> list[str]:
        """Describe the first violations of the schema.

        Empty if the arguments are valid.
        """
        if self._compiled is None:
            return []
        problems: dict[str, None] = {}
        try:
            for error in self._compiled.iterate_errors(arguments, self._budget):
                problems.setdefault(_describe_violation(cast(Any, best_match)([error])))
                if len(problems) == _MAX_PROBLEMS:
                    break
        except SchemaNotCheckable:
            return []
        return list(problems)

    def _coerce_value(self, value: object, schema: object, path: str, depth: int) -> object:
        self._steps += 1
        if self._steps > _MAX_STEPS or depth > _MAX_SCHEMA_DEPTH or not is_object(schema):
            return value
        schema = self._resolve_references(schema)
        if is_object(value):
            value = self._rename_keys(value, schema, path)
        is_combined = any(keyword in schema for keyword in ("allOf", "anyOf", "oneOf"))
        if self._is_valid(value, schema):
            if (is_object(value) or is_list(value)) and not is_combined:
                return self._coerce_members(value, schema, path, depth)
            return _to_integer(value) if "integer" in _list_types(schema) else value
        for part in schema.get("allOf", ()):
            value = self._coerce_value(value, part, path, depth + 1)
        for option in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            repair_count = len(self.repairs)
            coerced_value = self._coerce_value(value, option, path, depth + 1)
            if self._is_valid(coerced_value, schema):
                return coerced_value
            del self.repairs[repair_count:]
        return self._convert_value(value, schema, path, depth)

    def _convert_value(self, value: object, schema: JsonObject, path: str, depth: int) -> object:
        if "enum" in schema or "const" in schema:
            self._budget.spend(1 + len(schema.get("enum", ())) // 2)
            return self._choose_enum_value(value, schema.get("enum", [schema.get("const")]), path)
        best = value
        for kind in _list_types(schema):
            repair_count = len(self.repairs)
            converted = self._convert_to_type(kind, value, schema, path, depth)
            if self._is_valid(converted, schema):
                return converted
            if kind in ("object", "array") and type(converted) is type(value):
                best = converted
            else:
                del self.repairs[repair_count:]
        return best

    def _convert_to_type(self, kind: str, value: object, schema: JsonObject, path: str, depth: int) -> object:
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
        new_value = value
        match kind:
            case "integer" | "number":
                new_value = _parse_number(value)
            case "boolean" if isinstance(value, (str, int)):
                new_value = _BOOLEAN_WORDS.get(str(value).strip().lower(), value)
            case "string" if isinstance(value, (bool, int, float)):
                new_value = msgspec.json.encode(value).decode()
            case "null" if _is_empty_value(value):
                new_value = None
            case _:
                pass
        return self._record_repair(path, f"as {kind}", new_value)

    def _convert_to_list(self, value: object, path: str) -> object:
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            # Invalid JSON may be truncated, so it must not become an item.
            value = self._parse_embedded_json(value, path)
        elif _is_empty_value(value):
            value = self._record_repair(path, "as an empty list", []) if value == "" else value
        elif not is_list(value):
            value = self._record_repair(path, "as a list of one", [value])
        return self._record_repair(path, "as a list of one", [value]) if is_object(value) else value

    def _convert_to_object(self, value: object, path: str) -> object:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = self._parse_embedded_json(value, path)
        if is_list(value) and len(value) == 1 and is_object(value[0]):
            value = self._record_repair(path, "a list of one as its item", value[0])
        return value

    def _coerce_members(self, value: object, schema: JsonObject, path: str, depth: int) -> object:
        if is_list(value):
            prefix_items: list[object] = schema.get("prefixItems", [])
            schemas = [*prefix_items, *[schema.get("items", {})] * max(0, len(value) - len(prefix_items))]
            return [
                self._coerce_value(item, item_schema, f"{path}[{i}]", depth + 1)
                for i, (item, item_schema) in enumerate(zip(value, schemas, strict=False))
            ]
        if not is_object(value):
            return value
        members: JsonObject = {}
        for key, item in self._rename_keys(value, schema, path).items():
            self._coerce_member(members, key, item, schema, path, depth)
        return members

    def _coerce_member(
        self, members: JsonObject, key: str, item: object, schema: JsonObject, path: str, depth: int
    ) -> None:
        member_path = f"{path}.{key}" if path else key
        member_schema = schema.get("properties", {}).get(key)
        if member_schema is None:
            member_schema = schema.get("additionalProperties", True)
            if member_schema is False and "patternProperties" not in schema:
                self.repairs.append(f"{member_path}: dropped, there is no such field")
                return
        members[key] = self._coerce_value(item, member_schema, member_path, depth + 1)
        if (
            _is_empty_value(members[key])
            and key not in schema.get("required", ())
            and not self._is_valid(members[key], member_schema)
        ):
            self.repairs.append(f"{member_path}: dropped, it is empty")
            del members[key]

    def _rename_keys(self, value: JsonObject, schema: JsonObject, path: str) -> JsonObject:
        """Rename keys that differ from a missing property only in their spelling."""
        properties: JsonObject = schema.get("properties", {})
        self._budget.spend(1 + len(value) // 8)
        unknown_keys = [key for key in value if key not in properties]
        if not unknown_keys or "patternProperties" in schema or is_object(schema.get("additionalProperties")):
            return value
        self._budget.spend((len(unknown_keys) + len(properties)) // 2)
        keys = dict(_keep_unique((normalize_name(key), key) for key in unknown_keys))
        missing_names = dict(_keep_unique((normalize_name(name), name) for name in properties if name not in value))
        new_names = {
            keys[normalized_name]: name for normalized_name, name in missing_names.items() if normalized_name in keys
        }
        for key, name in new_names.items():
            self.repairs.append(f"{path}.{name}: called {key}" if path else f"{name}: called {key}")
        return {new_names.get(key, key): item for key, item in value.items()}

    def _choose_enum_value(self, value: object, choices: list[object], path: str) -> object:
        if is_list(value) and len(value) == 1:
            value = value[0]
        if value in choices or not isinstance(value, (str, int, float)):
            return value
        for fold in (str.casefold, normalize_name):
            equal = [c for c in choices if c is not None and fold(str(c)) == fold(str(value).strip())]
            if len(equal) == 1:
                return self._record_repair(path, "as one of the choices", equal[0])
        return value

    def _parse_embedded_json(self, text: str, path: str) -> object:
        try:
            return self._record_repair(
                path, "JSON in a text", LenientJsonParser(text, repairs=self.repairs).parse_document()
            )
        except JsonRepairError:
            return text

    def _record_repair(self, path: str, repair: str, value: object) -> object:
        self.repairs.append(f"{path or 'the arguments'}: {repair}")
        return value

    def _is_valid(self, value: object, schema: object) -> bool:
        assert self._compiled is not None
        self._budget.spend(_PART_OPERATIONS)
        try:
            return next(self._compiled.iterate_errors(value, self._budget, schema), None) is None
        except OperationsExceeded:
            raise
        except SchemaNotCheckable:
            return False

    def _describe_type(self, schema: JsonObject) -> str:
        schema = self._resolve_references(schema)
        if "enum" in schema:
            return f"one of {_shorten_json(schema['enum'])}"
        options = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        kinds = _list_types(schema) or [
            kind for option in options if is_object(option) for kind in _list_types(self._resolve_references(option))
        ]
        return " or ".join(dict.fromkeys(kinds)) or "any"

    def _resolve_references(self, schema: JsonObject) -> JsonObject:
        """Replace a `$ref` by its target in the same schema.

        An external reference is dropped.
        """
        for _ in range(_MAX_SCHEMA_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            target: object = self._schema if re.match(r"#(/|$)", reference) else None
            for part in reference[1:].split("/")[1:]:
                target = target.get(_unescape_pointer(part)) if is_object(target) else None
            self._budget.spend(1 + (len(schema) + (len(target) if is_object(target) else 0)) // 8)
            siblings = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**target, **siblings} if is_object(target) else siblings
        return {}


def _compile_or_none(schema: JsonObject) -> CompiledSchema | None:
    """Compile a JSON schema, once; None if it is invalid."""
    try:
        return compile_schema(schema)
    except SchemaInvalid:
        return None


def _list_types(schema: JsonObject) -> list[str]:
    kind = schema.get("type")
    if isinstance(kind, str):
        return [kind]
    if is_list(kind):
        return kind
    return ["object"] if "properties" in schema else ["array"] if "items" in schema else []


def _parse_number(value: object) -> object:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if re.search(r"[.eE]", value) else int(value)
    return _to_integer(value)


def _to_integer(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is_empty_value(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _NULL_WORDS)


def _keep_unique(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the pairs whose first item occurs once."""
    pairs = list(pairs)
    counts = Counter(key for key, _ in pairs)
    return (pair for pair in pairs if counts[pair[0]] == 1)


def _unescape_pointer(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _describe_violation(error: Any) -> str:
    """Describe a violation to the model.

    The description has the field, its value and what is expected.
    """
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    value, constraint = error.instance, error.validator_value
    match error.validator:
        case "required":
            missing_names = ", ".join(name for name in constraint if name not in value)[:_MAX_SIGNATURE_LENGTH]
            parent = f" in {field}" if field else ""
            names = ", ".join(map(str, value))[:_MAX_SHOWN_CHARS] or "nothing"
            return f"required and missing{parent}: {missing_names} (given: {names})"
        case "type":
            types = " or ".join(constraint) if is_list(constraint) else constraint
            return f"{field or 'the arguments'}: {_shorten_json(value)} was given, {types} is expected"
        case "enum" | "const":
            expected = "one of " * (error.validator == "enum") + _shorten_json(constraint)
            return f"{field or 'the arguments'}: {_shorten_json(value)} was given, {expected} is expected"
        case _:
            return f"{field or 'the arguments'}: {str(error.message)[:_MAX_SHOWN_CHARS]}"


def _shorten_json(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
