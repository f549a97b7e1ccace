"""Schemas of OpenAPI as JSON schemas of arguments."""

from collections import deque
from typing import Any, cast

from gateway_runtime.json_schema.rules import SchemaTooLarge, measure_value
from tools_server.http_tools.openapi.document import JsonObject, OpenApiDocument, Unsupported, as_list, as_object
from tools_server.http_tools.openapi.names import make_unique, to_identifier

MAX_NODES, MAX_CHARS = 2_500, 30_000
"""Size of all schemas of an operation: larger parts accept anything."""
_MAX_DESCRIPTION_LENGTH = 500
_MAX_DEPTH = 24
_PLAIN_KEYWORDS = frozenset(
    {
        "type", "format", "enum", "const", "default", "pattern", "title", "minimum", "maximum", "exclusiveMinimum",
        "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems",
        "minProperties", "maxProperties", "contentEncoding", "contentMediaType",
    }
)  # fmt: skip
_SCHEMA_KEYWORDS = ("items", "additionalProperties", "not", "propertyNames", "contains", "if", "then", "else")
_LIST_KEYWORDS = ("allOf", "anyOf", "oneOf", "prefixItems")


class SchemaConverter:
    """Converts the schemas of one operation.

    A referenced schema becomes a member of `$defs`, once, so that circles stay references.
    """

    def __init__(self, document: OpenApiDocument) -> None:
        self._document = document
        self._names: dict[str, str] = {}
        self._pending: deque[str] = deque()
        self.definitions: JsonObject = {}
        self.notes: list[str] = []
        self._nodes = 0
        self._chars = 0

    def convert(self, schema: Any) -> JsonObject:
        """Convert a schema. What it references is converted by `finish`."""
        return self._bound(self._convert(schema, 0))

    def finish(self) -> JsonObject:
        """Convert all schemas that are referenced; return the `$defs`."""
        while self._pending:
            reference = self._pending.popleft()
            name = self._names[reference]
            try:
                self.definitions[name] = self._bound(self._convert(self._document.find(reference), 0))
            except Unsupported as error:
                self.definitions[name] = {}
                self._note(f"a schema accepts anything: {error}")
        return self.definitions

    def _bound(self, schema: JsonObject) -> JsonObject:
        """Return the schema, or a laxer one beyond the operation's budget."""
        try:
            size = measure_value(schema, max_nodes=MAX_NODES - self._nodes, max_chars=MAX_CHARS - self._chars)
        except SchemaTooLarge:
            self._note("its schemas are large: some parts accept anything")
            return {name: schema[name] for name in ("type", "description") if isinstance(schema.get(name), str)}
        self._nodes += size.nodes
        self._chars += size.chars
        return schema

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _convert(self, schema: Any, depth: int) -> JsonObject:
        if isinstance(schema, bool):
            return {} if schema else {"not": {}}
        if not isinstance(schema, dict):
            raise Unsupported("a schema is not an object")
        source = cast(JsonObject, schema)
        if isinstance(reference := source.get("$ref"), str):
            return {"$ref": f"#/$defs/{self._name(reference)}"}
        if depth > _MAX_DEPTH:
            self._note("its schemas are nested deeply: some parts accept anything")
            return {}
        result: JsonObject = {name: value for name, value in source.items() if name in _PLAIN_KEYWORDS}
        if isinstance(description := source.get("description"), str) and description:
            result["description"] = description[:_MAX_DESCRIPTION_LENGTH]
        self._convert_properties(source, result, depth)
        if patterns := as_object(source.get("patternProperties")):
            result["patternProperties"] = {name: self._convert(member, depth + 1) for name, member in patterns.items()}
        for keyword in _SCHEMA_KEYWORDS:
            if isinstance(source.get(keyword), dict | bool):
                result[keyword] = self._convert(source[keyword], depth + 1)
        for keyword in _LIST_KEYWORDS:
            if members := as_list(source.get(keyword)):
                result[keyword] = [self._convert(member, depth + 1) for member in members]
        if self._document.is_3_0:
            _modernize(source, result)
        return result

    def _convert_properties(self, source: JsonObject, result: JsonObject, depth: int) -> None:
        """Convert the properties without those that only answers have."""
        properties = as_object(source.get("properties"))
        writable = {name: member for name, member in properties.items() if not as_object(member).get("readOnly")}
        if writable:
            result["properties"] = {name: self._convert(member, depth + 1) for name, member in writable.items()}
        required = [name for name in as_list(source.get("required")) if isinstance(name, str)]
        if required := [name for name in required if name in writable or name not in properties]:
            result["required"] = required

    def _name(self, reference: str) -> str:
        """Return the name of a referenced schema in `$defs`."""
        if reference not in self._names:
            self._document.find(reference)
            stem = to_identifier(reference.rpartition("/")[2], "schema")
            self._names[reference] = make_unique(stem, self._names.values())
            self._pending.append(reference)
        return self._names[reference]


def _modernize(source: JsonObject, result: JsonObject) -> None:
    """Replace keywords of OpenAPI 3.0 by those of JSON Schema 2020-12."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(flag := result.get(exclusive), bool):
            del result[exclusive]
            if flag and bound in result:
                result[exclusive] = result.pop(bound)
    if source.get("nullable") is True:
        if isinstance(kind := result.get("type"), str):
            result["type"] = [kind, "null"]
        if isinstance(values := result.get("enum"), list) and None not in values:
            result["enum"] = [*cast("list[Any]", values), None]
    if result.get("type") == "file":
        result["type"] = "string"
