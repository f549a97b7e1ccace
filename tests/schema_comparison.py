"""Incompatible differences between versions of an OpenAPI document or JSON schema.

References are resolved first, so the names of components do not matter. Each difference is one line,
`<location>: <change>`. Additions are compatible and not reported.
"""

from collections.abc import Iterator
from math import inf
from typing import Any

JsonObject = dict[str, Any]

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
LOWER_BOUNDS = {"minimum": -inf, "exclusiveMinimum": -inf, "minLength": 0, "minItems": 0, "minProperties": 0}
NUMERIC = {"integer": {"number"}}


def compare_openapi(old: JsonObject, new: JsonObject) -> Iterator[str]:
    """Yield the incompatible differences between two OpenAPI documents."""
    sent, received = SchemaComparison(old, new, sent=True), SchemaComparison(old, new, sent=False)
    for path, operations in old["paths"].items():
        for method, operation in operations.items():
            if method not in METHODS:
                continue
            where = f"{method.upper()} {path}"
            changed = new["paths"].get(path, {}).get(method)
            if changed is None:
                yield f"{where}: removed"
                continue
            yield from _compare_parameters(operation, changed, sent, where)
            yield from _compare_request_body(operation, changed, sent, where)
            yield from _compare_responses(operation, changed, received, where)


def compare_schemas(old: JsonObject, new: JsonObject) -> Iterator[str]:
    """Yield the incompatible differences between two schemas of data for clients."""
    return SchemaComparison(old, new, sent=False).compare(old, new, "")


def _compare_parameters(old: JsonObject, new: JsonObject, schemas: "SchemaComparison", where: str) -> Iterator[str]:
    before = {_parameter_key(parameter): parameter for parameter in old.get("parameters", ())}
    after = {_parameter_key(parameter): parameter for parameter in new.get("parameters", ())}
    for key, parameter in before.items():
        if key not in after:
            yield f"{where} {key}: removed"
            continue
        if after[key].get("required") and not parameter.get("required"):
            yield f"{where} {key}: required now"
        yield from schemas.compare(parameter.get("schema", {}), after[key].get("schema", {}), f"{where} {key}")
    for key in after.keys() - before.keys():
        if after[key].get("required"):
            yield f"{where} {key}: required now"


def _parameter_key(parameter: JsonObject) -> str:
    name = parameter["name"]
    return f"{parameter['in']} {name.lower() if parameter['in'] == 'header' else name}"


def _compare_request_body(old: JsonObject, new: JsonObject, schemas: "SchemaComparison", where: str) -> Iterator[str]:
    before, after = old.get("requestBody"), new.get("requestBody")
    if before is None:
        if after is not None and after.get("required"):
            yield f"{where} request: required now"
        return
    if after is None:
        yield f"{where} request: removed"
        return
    if after.get("required") and not before.get("required"):
        yield f"{where} request: required now"
    yield from _compare_content(before, after, schemas, f"{where} request")


def _compare_responses(old: JsonObject, new: JsonObject, schemas: "SchemaComparison", where: str) -> Iterator[str]:
    """Compare responses; a removed error status is a compatible change."""
    for status, response in old["responses"].items():
        changed = new["responses"].get(status)
        if changed is None:
            if status.startswith("2"):
                yield f"{where} {status}: removed"
            continue
        for header in response.get("headers", {}):
            if header not in changed.get("headers", {}):
                yield f"{where} {status} header {header}: removed"
        yield from _compare_content(response, changed, schemas, f"{where} {status}")


def _compare_content(old: JsonObject, new: JsonObject, schemas: "SchemaComparison", where: str) -> Iterator[str]:
    for kind, content in old.get("content", {}).items():
        changed = new.get("content", {}).get(kind)
        if changed is None:
            yield f"{where} {kind}: removed"
        else:
            yield from schemas.compare(content.get("schema", {}), changed.get("schema", {}), where)


class SchemaComparison:
    """Compares schemas of values that clients send (`sent`) or receive."""

    def __init__(self, old: JsonObject, new: JsonObject, *, sent: bool) -> None:
        self._old = old
        self._new = new
        self._sent = sent
        self._pairs_in_progress: set[tuple[int, int]] = set()

    def compare(self, old: JsonObject, new: JsonObject, where: str) -> Iterator[str]:
        old, new = resolve_references(old, self._old), resolve_references(new, self._new)
        pair = (id(old), id(new))
        if pair in self._pairs_in_progress:  # a recursive schema
            return
        self._pairs_in_progress.add(pair)
        try:
            yield from self._compare_alternatives(
                list_alternatives(old, self._old), list_alternatives(new, self._new), where
            )
        finally:
            self._pairs_in_progress.discard(pair)

    def _compare_alternatives(self, old: list[JsonObject], new: list[JsonObject], where: str) -> Iterator[str]:
        for alternative in old:
            matches = [candidate for candidate in new if self._can_match(alternative, candidate)]
            if not matches:
                yield f"{where}: {describe_schema(alternative)} removed"
                continue
            at = where if len(old) == 1 else _locate_alternative(alternative, where)
            differences = (list(self._compare_one(alternative, match, at)) for match in matches)
            yield from min(differences, key=len)
        if not self._sent:
            known = {
                kind for alternative in old for kind in (get_type(alternative), *NUMERIC.get(get_type(alternative), ()))
            }
            for kind in sorted({get_type(alternative) for alternative in new} - known):
                if known != {"anything"}:
                    yield f"{where}: may be {kind} now"

    def _can_match(self, old: JsonObject, new: JsonObject) -> bool:
        before, after = get_type(old), get_type(new)
        wider, narrower = (after, before) if self._sent else (before, after)
        if before != after and wider not in (*NUMERIC.get(narrower, ()), "anything"):
            return False
        tags, changed = get_tags(old), get_tags(new)
        return all(changed.get(name, value) == value for name, value in tags.items())

    def _compare_one(self, old: JsonObject, new: JsonObject, where: str) -> Iterator[str]:
        yield from self._compare_values(old, new, where)
        if self._sent:
            yield from _compare_bounds(old, new, where)
        if old.get("format") != new.get("format") and (old.get("format") or self._sent):
            yield f"{where}: format {old.get('format', 'none')} changed to {new.get('format', 'none')}"
        if "items" in old or "items" in new:
            yield from self.compare(old.get("items", {}), new.get("items", {}), f"{where}[]")
        yield from self._compare_properties(old, new, where)

    def _compare_values(self, old: JsonObject, new: JsonObject, where: str) -> Iterator[str]:
        before, after = get_values(old), get_values(new)
        if before is not None and after is not None:
            yield from (f"{where}: value {value!r} removed" for value in before if value not in after)
        elif after is not None and self._sent:
            yield f"{where}: only {after} now"

    def _compare_properties(self, old: JsonObject, new: JsonObject, where: str) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, schema in before.items():
            at = f"{where}.{name}".removeprefix(".")
            if name in after:
                yield from self.compare(schema, after[name], at)
            else:
                yield f"{at}: removed"
        if self._sent:
            for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
                yield f"{where}.{name}: required now"
        else:
            for name in sorted((set(old.get("required", ())) - set(new.get("required", ()))) & after.keys()):
                yield f"{where}.{name}: not always present now".removeprefix(".")
        extra_before, extra_after = old.get("additionalProperties", True), new.get("additionalProperties", True)
        if self._sent and extra_before is not False and extra_after is False:
            yield f"{where}: unknown properties are refused now"
        elif isinstance(extra_before, dict) and isinstance(extra_after, dict):
            yield from self.compare(extra_before, extra_after, f"{where}.*")


def _locate_alternative(schema: JsonObject, where: str) -> str:
    tags = ", ".join(map(str, get_tags(schema).values()))
    return f"{where}({tags})" if where and tags else where or tags


def _compare_bounds(old: JsonObject, new: JsonObject, where: str) -> Iterator[str]:
    for bound in UPPER_BOUNDS:
        if bound in new and new[bound] < old.get(bound, inf):
            yield f"{where}: {bound} {new[bound]} now"
    for bound, unset in LOWER_BOUNDS.items():
        if bound in new and new[bound] > old.get(bound, unset):
            yield f"{where}: {bound} {new[bound]} now"
    if "pattern" in new and new["pattern"] != old.get("pattern"):
        yield f"{where}: pattern {new['pattern']} now"


def resolve_references(schema: JsonObject | bool, document: JsonObject) -> JsonObject:
    """Resolve references at a schema's top and merge its `allOf`."""
    if isinstance(schema, bool):
        return {}
    while "$ref" in schema:
        target: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        schema = target
    for part in schema.get("allOf", ()):
        schema = {**schema, **resolve_references(part, document)}
    return schema


def list_alternatives(schema: JsonObject, document: JsonObject) -> list[JsonObject]:
    """Return the alternatives of `anyOf`, `oneOf` or a list of types."""
    schema = resolve_references(schema, document)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return [alternative for part in schema[keyword] for alternative in list_alternatives(part, document)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": kind} for kind in schema["type"]]
    return [schema]


def get_values(schema: JsonObject) -> list[Any] | None:
    """Return the values that `const` or `enum` allows, if any."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def get_type(schema: JsonObject) -> str:
    if "type" in schema:
        return str(schema["type"])
    kinds = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "NoneType": "null"}
    values = get_values(schema)
    if values:
        return kinds.get(type(values[0]).__name__, "anything")
    return "object" if "properties" in schema else "anything"


def get_tags(schema: JsonObject) -> JsonObject:
    """Return properties with only one value; they distinguish union alternatives."""
    values = {name: get_values(part) for name, part in schema.get("properties", {}).items()}
    return {name: allowed[0] for name, allowed in values.items() if allowed is not None and len(allowed) == 1}


def describe_schema(schema: JsonObject) -> str:
    tags = ", ".join(map(repr, get_tags(schema).values()))
    return f"{get_type(schema)} {tags}".rstrip()
