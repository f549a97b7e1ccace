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
from gateway.llm.tool_repair.json_repair import Reader, Unreadable, is_list, is_object
from gateway.llm.tool_repair.tool_names import plain

_MOST_STEPS = 5_000
_MOST_DEPTH = 80
_SHOWN = 3
_LONGEST = 200

_NUMBER = re.compile(r"\s*[+-]?(?:\d{1,18}\.?\d{0,40}|\.\d{1,40})(?:[eE][+-]?\d{1,2})?\s*", re.ASCII)
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NOTHING = ("", "null", "none", "undefined")


class Fitter:
    """Fits arguments to one schema. `how` tells what had to be done.

    A schema that cannot be checked (it is not valid, or refers to what is not in it) lets everything through: the
    tool's own server is the judge then.
    """

    def __init__(self, schema: JsonObject) -> None:
        self.how: list[str] = []
        self._schema = schema
        self._validator = _validator(msgspec.json.encode(schema))
        self._steps = 0

    @property
    def properties(self) -> JsonObject | None:
        """The properties by name; None: the schema does not tell them."""
        return self._resolved(self._schema).get("properties") if self._validator else None

    @property
    def required(self) -> list[str]:
        return list(self._resolved(self._schema).get("required", ())) if self._validator else []

    @property
    def signature(self) -> str:
        """What the tool takes, in a line."""
        required = self.required
        fields = [
            f"{name} ({self._kind(schema)}{', required' * (name in required)})"
            for name, schema in (self.properties or {}).items()
            if is_object(schema)
        ]
        return ", ".join(fields) or "no arguments"

    def fit(self, arguments: JsonObject) -> Any:
        """The arguments, as near to the schema as is safe. No value is invented, and none is cut."""
        return arguments if self._validator is None else self._fit(arguments, self._schema, "", 0)

    def problems(self, arguments: Any) -> list[str]:
        """What does not fit, the first few; empty: everything does."""
        if self._validator is None:
            return []
        found: dict[str, None] = {}
        try:
            for error in iterate_errors(self._validator, arguments):
                found.setdefault(_words(cast(Any, best_match)([error])))
                if len(found) == _SHOWN:
                    break
        except SchemaNotCheckable:
            return []
        return list(found)

    def _fit(self, value: Any, schema: Any, path: str, depth: int) -> Any:
        self._steps += 1
        if self._steps > _MOST_STEPS or depth > _MOST_DEPTH or not is_object(schema):
            return value
        schema = self._resolved(schema)
        if is_object(value):
            value = self._rename(value, schema, path)
        mixed = any(word in schema for word in ("allOf", "anyOf", "oneOf"))
        if self._fits(value, schema):
            if (is_object(value) or is_list(value)) and not mixed:
                return self._inside(value, schema, path, depth)
            return _whole(value) if "integer" in _kinds(schema) else value
        for part in schema.get("allOf", ()):
            value = self._fit(value, part, path, depth + 1)
        for option in [*schema.get("anyOf", ()), *schema.get("oneOf", ())]:
            done = len(self.how)
            tried = self._fit(value, option, path, depth + 1)
            if self._fits(tried, schema):
                return tried
            del self.how[done:]
        return self._convert(value, schema, path, depth)

    def _convert(self, value: Any, schema: JsonObject, path: str, depth: int) -> Any:
        if "enum" in schema or "const" in schema:
            return self._choose(value, schema.get("enum", [schema.get("const")]), path)
        best = value
        for kind in _kinds(schema):
            done = len(self.how)
            made = self._as(kind, value, schema, path, depth)
            if self._fits(made, schema):
                return made
            if kind in ("object", "array") and type(made) is type(value):
                best = made
            else:
                del self.how[done:]
        return best

    def _as(self, kind: str, value: Any, schema: JsonObject, path: str, depth: int) -> Any:
        if kind == "array":
            value = self._list(value, path)
        if kind == "object":
            value = self._dict(value, path)
        if kind in ("array", "object"):
            return self._inside(value, schema, path, depth)
        if is_list(value) and len(value) == 1:
            return self._did(path, "a list of one as its item", self._fit(value[0], schema, path, depth + 1))
        made = value
        match kind:
            case "integer" | "number":
                made = _number(value)
            case "boolean" if isinstance(value, (str, int)):
                made = _TRUTHS.get(str(value).strip().lower(), value)
            case "string" if isinstance(value, (bool, int, float)):
                made = msgspec.json.encode(value).decode()
            case "null" if _is_nothing(value):
                made = None
            case _:
                pass
        return self._did(path, f"as {kind}", made)

    def _list(self, value: Any, path: str) -> Any:
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            # What looks like JSON and is none may be cut: it is not made an item.
            value = self._parsed(value, path)
        elif _is_nothing(value):
            value = self._did(path, "as an empty list", []) if value == "" else value
        elif not is_list(value):
            value = self._did(path, "as a list of one", [value])
        return self._did(path, "as a list of one", [value]) if is_object(value) else value

    def _dict(self, value: Any, path: str) -> Any:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = self._parsed(value, path)
        if is_list(value) and len(value) == 1 and is_object(value[0]):
            value = self._did(path, "a list of one as its item", value[0])
        return value

    def _inside(self, value: Any, schema: JsonObject, path: str, depth: int) -> Any:
        if is_list(value):
            first: list[Any] = schema.get("prefixItems", [])
            schemas = [*first, *[schema.get("items", {})] * max(0, len(value) - len(first))]
            return [
                self._fit(item, wanted, f"{path}[{i}]", depth + 1)
                for i, (item, wanted) in enumerate(zip(value, schemas, strict=False))
            ]
        if not is_object(value):
            return value
        fitted: JsonObject = {}
        for key, item in self._rename(value, schema, path).items():
            self._member(fitted, key, item, schema, path, depth)
        return fitted

    def _member(self, fitted: JsonObject, key: str, item: Any, schema: JsonObject, path: str, depth: int) -> None:
        where = f"{path}.{key}" if path else key
        wanted = schema.get("properties", {}).get(key)
        if wanted is None:
            wanted = schema.get("additionalProperties", True)
            if wanted is False and "patternProperties" not in schema:
                self.how.append(f"{where}: dropped, there is no such field")
                return
        fitted[key] = self._fit(item, wanted, where, depth + 1)
        if _is_nothing(fitted[key]) and key not in schema.get("required", ()) and not self._fits(fitted[key], wanted):
            self.how.append(f"{where}: dropped, it is empty")
            del fitted[key]

    def _rename(self, value: JsonObject, schema: JsonObject, path: str) -> JsonObject:
        """Keys that differ from a missing property only in how they are written take its name."""
        properties: JsonObject = schema.get("properties", {})
        stray = [key for key in value if key not in properties]
        if not stray or "patternProperties" in schema or is_object(schema.get("additionalProperties")):
            return value
        names = dict(_unique((plain(key), key) for key in stray))
        missing = dict(_unique((plain(name), name) for name in properties if name not in value))
        renamed = {names[short]: name for short, name in missing.items() if short in names}
        for key, name in renamed.items():
            self.how.append(f"{path}.{name}: called {key}" if path else f"{name}: called {key}")
        return {renamed.get(key, key): item for key, item in value.items()}

    def _choose(self, value: Any, choices: list[Any], path: str) -> Any:
        if is_list(value) and len(value) == 1:
            value = value[0]
        if value in choices or not isinstance(value, (str, int, float)):
            return value
        for fold in (str.casefold, plain):
            same = [one for one in choices if one is not None and fold(str(one)) == fold(str(value).strip())]
            if len(same) == 1:
                return self._did(path, "as one of the choices", same[0])
        return value

    def _parsed(self, text: str, path: str) -> Any:
        try:
            return self._did(path, "JSON in a text", Reader(text, how=self.how).whole())
        except Unreadable:
            return text

    def _did(self, path: str, what: str, made: Any) -> Any:
        self.how.append(f"{path or 'the arguments'}: {what}")
        return made

    def _fits(self, value: Any, schema: Any) -> bool:
        assert self._validator is not None
        try:
            return next(iterate_errors(self._validator.evolve(schema=schema), value), None) is None
        except SchemaNotCheckable:
            return False

    def _kind(self, schema: JsonObject) -> str:
        schema = self._resolved(schema)
        if "enum" in schema:
            return f"one of {_shown(schema['enum'])}"
        options = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        kinds = _kinds(schema) or [kind for one in options if is_object(one) for kind in _kinds(self._resolved(one))]
        return " or ".join(dict.fromkeys(kinds)) or "any"

    def _resolved(self, schema: JsonObject) -> JsonObject:
        """The schema with what its `$ref` points to inside the whole; one that points elsewhere says nothing."""
        for _ in range(_MOST_DEPTH):
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            target: Any = self._schema if re.match(r"#(/|$)", reference) else None
            for part in reference[1:].split("/")[1:]:
                target = target.get(_unescaped(part)) if is_object(target) else None
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**target, **rest} if is_object(target) else rest
        return {}


@lru_cache(maxsize=512)
def _validator(schema: bytes) -> Any:
    """None: the schema is not valid."""
    decoded = msgspec.json.decode(schema)
    try:
        check_schema(decoded)
    except (SchemaError, SchemaNotCheckable):
        return None
    return compile_schema(decoded)


def _kinds(schema: JsonObject) -> list[str]:
    kind = schema.get("type")
    if isinstance(kind, str):
        return [kind]
    if is_list(kind):
        return kind
    return ["object"] if "properties" in schema else ["array"] if "items" in schema else []


def _number(value: Any) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if re.search(r"[.eE]", value) else int(value)
    return _whole(value)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING)


def _unique(pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The pairs whose first is there once."""
    pairs = list(pairs)
    firsts = [first for first, _ in pairs]
    return (pair for pair in pairs if firsts.count(pair[0]) == 1)


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def _words(error: Any) -> str:
    """A violation, for the model: the field, what was given, what is expected."""
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    given, wanted = error.instance, error.validator_value
    match error.validator:
        case "required":
            missing = ", ".join(name for name in wanted if name not in given)
            where = f" in {field}" if field else ""
            return (
                f"required and missing{where}: {missing} (given: {', '.join(map(str, given))[:_LONGEST] or 'nothing'})"
            )
        case "type":
            kinds = " or ".join(wanted) if is_list(wanted) else wanted
            return f"{field or 'the arguments'}: {_shown(given)} was given, {kinds} is expected"
        case "enum" | "const":
            choice = "one of " * (error.validator == "enum")
            return f"{field or 'the arguments'}: {_shown(given)} was given, {choice}{_shown(wanted)} is expected"
        case _:
            return f"{field or 'the arguments'}: {str(error.message)[:_LONGEST]}"


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
