"""An operation of OpenAPI as a definition: parameters, bodies, URL."""

import re
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote

from gateway_runtime.http_tools.definitions import DefinedTool, WireField
from tools_server.http_tools.openapi.document import JsonObject, OpenApiDocument, Unsupported, as_list, as_object
from tools_server.http_tools.openapi.names import make_unique, to_identifier
from tools_server.http_tools.openapi.schemas import SchemaConverter
from tools_server.http_tools.openapi.security import map_security

METHODS = ("get", "head", "post", "put", "patch", "delete")
_OPERATORS = {"simple": "", "label": ".", "matrix": ";"}
_STYLES = ("form", "spaceDelimited", "pipeDelimited", "deepObject")
_IGNORED_HEADERS = ("accept", "content-type", "authorization")
_MAX_DESCRIPTION_LENGTH = 2_000
_PATH_PARAMETER = re.compile(r"\{([^{}]+)\}")
_COMPOSITIONS = ("allOf", "anyOf", "oneOf", "nullable")
_FORM = "application/x-www-form-urlencoded"


@dataclass
class Operation:
    """An operation and where it stands in the document."""

    method: str
    path: str
    item: JsonObject
    node: JsonObject

    @property
    def key(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def operation_id(self) -> str | None:
        value = self.node.get("operationId")
        return value if isinstance(value, str) and value else None


@dataclass
class MappedOperation:
    """The definition of an operation, its secrets, and notes."""

    definition: DefinedTool
    secrets: dict[str, str]
    notes: list[str]


@dataclass
class _Arguments:
    """Arguments of the definition, with those that each parameter became."""

    properties: JsonObject = field(default_factory=dict[str, Any])
    required: list[str] = field(default_factory=list[str])

    def add(self, name: str, schema: JsonObject, *, required: bool) -> str:
        argument = make_unique(to_identifier(name), self.properties)
        self.properties[argument] = schema
        if required:
            self.required.append(argument)
        return argument


def list_operations(document: OpenApiDocument) -> list[Operation]:
    """List the operations in the order of the document."""
    operations: list[Operation] = []
    for path, item in document.paths.items():
        if not path.startswith("/"):
            continue
        try:
            resolved = document.resolve(item)
        except Unsupported:
            continue
        nodes = ((method, resolved.get(method)) for method in METHODS)
        operations.extend(
            Operation(method, path, resolved, cast(JsonObject, node))
            for method, node in nodes
            if isinstance(node, dict)
        )
    return operations


class OperationMapper:
    """Maps one operation."""

    def __init__(self, document: OpenApiDocument, operation: Operation, server_url: str) -> None:
        self._document = document
        self._operation = operation
        self._server_url = server_url
        self._schemas = SchemaConverter(document)
        self._arguments = _Arguments()
        self._query: list[WireField] = []
        self._headers: dict[str, str] = {}
        self._cookies: list[str] = []
        self._path_expressions: dict[str, str] = {}
        self._notes: list[str] = []

    def map(self, name: str) -> MappedOperation:
        """Map the operation.

        Raises:
            Unsupported: a required part cannot be mapped.
        """
        authentication = map_security(self._document, self._operation.node)
        for parameter in self._list_parameters():
            self._add_parameter(parameter)
        body, form = self._map_body()
        url = self._build_url()
        self._headers |= authentication.headers
        if cookies := [*authentication.cookies, *self._cookies]:
            self._headers["Cookie"] = "; ".join(cookies)
        definitions = self._schemas.finish()
        schema: JsonObject = {"type": "object", "properties": self._arguments.properties}
        schema |= {"required": self._arguments.required} if self._arguments.required else {}
        schema |= {"$defs": definitions} if definitions else {}
        definition = DefinedTool(
            name=name,
            description=self._describe(),
            input_schema=schema,
            method=cast("Any", self._operation.method.upper()),
            url=url,
            query=[*self._query, *authentication.query],
            headers=self._headers,
            body=body,
            form=form,
        )
        return MappedOperation(definition, authentication.secrets, [*self._notes, *self._schemas.notes])

    def _describe(self) -> str:
        node = self._operation.node
        texts = [str(node[name]).strip() for name in ("summary", "description") if isinstance(node.get(name), str)]
        unique = [text for text in dict.fromkeys(texts) if text]
        text = "\n\n".join(unique) or self._operation.key
        return (
            f"Deprecated. {text}"[:_MAX_DESCRIPTION_LENGTH]
            if node.get("deprecated")
            else text[:_MAX_DESCRIPTION_LENGTH]
        )

    def _list_parameters(self) -> list[JsonObject]:
        """List the parameters; those of the operation replace those of its path."""
        found: dict[tuple[object, object], JsonObject] = {}
        for owner in (self._operation.item, self._operation.node):
            for node in as_list(owner.get("parameters")):
                parameter = self._document.resolve(node)
                found[(parameter.get("in"), parameter.get("name"))] = parameter
        return list(found.values())

    def _add_parameter(self, parameter: JsonObject) -> None:
        name, place = parameter.get("name"), parameter.get("in")
        if not isinstance(name, str) or not name:
            raise Unsupported("a parameter has no name")
        is_required = parameter.get("required") is True or place == "path"
        schema, is_json = self._get_schema(parameter)
        if isinstance(description := parameter.get("description"), str) and description and "$ref" not in schema:
            schema = {**schema, "description": description[:500]}
        match place:
            case "path":
                self._path_expressions[name] = self._map_path(name, parameter, schema)
            case "query":
                self._add_query(name, parameter, schema, is_required, is_json)
            case "header":
                if name.lower() not in _IGNORED_HEADERS:
                    argument = self._arguments.add(name, schema, required=is_required)
                    self._headers[name] = f"{{{argument}}}"
            case "cookie":
                if is_required:
                    self._cookies.append(f"{name}={{{self._arguments.add(name, schema, required=True)}}}")
                else:
                    self._notes.append(f"the optional cookie {name} is left out")
            case _:
                raise Unsupported(f"the parameter {name[:60]} is in {str(place)[:20]!r}")

    def _get_schema(self, parameter: JsonObject) -> tuple[JsonObject, bool]:
        """Return a parameter's schema, and whether it is sent as JSON."""
        for media_type, content in as_object(parameter.get("content")).items():
            return self._schemas.convert(as_object(content).get("schema", {})), _is_json(media_type)
        return self._schemas.convert(parameter.get("schema", {})), False

    def _map_path(self, name: str, parameter: JsonObject, schema: JsonObject) -> str:
        style = str(parameter.get("style") or "simple")
        if style not in _OPERATORS:
            raise Unsupported(f"the path parameter {name[:60]} has the style {style[:30]!r}")
        argument = self._arguments.add(name, schema, required=True)
        if style == "matrix" and argument != name:
            raise Unsupported(f"the path parameter {name[:60]} cannot be named in its style")
        return f"{{{_OPERATORS[style]}{argument}{'*' if parameter.get('explode') is True else ''}}}"

    def _add_query(
        self, name: str, parameter: JsonObject, schema: JsonObject, is_required: bool, is_json: bool
    ) -> None:
        style = "json" if is_json else str(parameter.get("style") or "form")
        if style != "json" and style not in _STYLES:
            raise Unsupported(f"the query parameter {name[:60]} has the style {style[:30]!r}")
        explode = parameter.get("explode")
        explodes = explode if isinstance(explode, bool) else style in ("form", "deepObject")
        argument = self._arguments.add(name, schema, required=is_required)
        self._query.append(WireField(name=name, argument=argument, style=cast("Any", style), explode=explodes))

    def _map_body(self) -> tuple[Any, list[WireField] | None]:
        if (node := self._operation.node.get("requestBody")) is None or self._operation.method in ("get", "head"):
            return None, None
        body = self._document.resolve(node)
        is_required = body.get("required") is True
        contents = as_object(body.get("content"))
        if (json_type := next((kind for kind in contents if _is_json(kind)), None)) is not None:
            return self._map_json(json_type, as_object(contents[json_type]), is_required), None
        if _FORM in contents:
            return None, self._map_form(as_object(contents[_FORM]), is_required)
        if contents and is_required:
            raise Unsupported(f"its body is {next(iter(contents))[:60]}")
        if contents:
            self._notes.append(f"the optional body of {next(iter(contents))[:60]} is left out")
        return None, None

    def _map_json(self, media_type: str, content: JsonObject, is_required: bool) -> Any:
        """Map a JSON body.

        The properties of a plain object become arguments; any other body is one argument.
        """
        if media_type.partition(";")[0] not in ("application/json", "*/*"):
            self._headers["Content-Type"] = media_type
        schema = content.get("schema", {})
        properties = self._find_plain_properties(schema)
        if properties is None:
            argument = self._arguments.add("body", self._schemas.convert(schema), required=is_required)
            return f"{{{argument}}}"
        required = as_list(self._document.resolve(schema).get("required")) if is_required else []
        return {
            name: f"{{{self._arguments.add(name, self._schemas.convert(member), required=name in required)}}}"
            for name, member in properties.items()
        }

    def _find_plain_properties(self, schema: Any) -> JsonObject | None:
        """Return the properties of a plain object; None of any other body.

        A null property would be left out, so a body that may have one stays whole.
        """
        resolved = self._document.resolve(schema)
        if resolved.get("type") != "object" or any(
            name in resolved for name in ("allOf", "anyOf", "oneOf", "nullable")
        ):
            return None
        if resolved.get("additionalProperties") not in (None, False):
            return None
        properties: JsonObject = {}
        for name, member in as_object(resolved.get("properties")).items():
            if member is None or isinstance(member, bool) or _accepts_null(resolved := self._document.resolve(member)):
                return None
            if not resolved.get("readOnly"):
                properties[name] = member
        return properties or None

    def _map_form(self, content: JsonObject, is_required: bool) -> list[WireField]:
        schema = self._document.resolve(content.get("schema", {}))
        encodings, required = as_object(content.get("encoding")), as_list(schema.get("required"))
        fields: list[WireField] = []
        for name, member in as_object(schema.get("properties")).items():
            encoding = as_object(encodings.get(name))
            style = encoding.get("style")
            kind = self._document.resolve(member).get("type")
            if style not in _STYLES:
                style = "json" if kind == "object" else "form"
            explodes = encoding.get("explode") is not False
            argument = self._arguments.add(
                name, self._schemas.convert(member), required=is_required and name in required
            )
            fields.append(WireField(name=name, argument=argument, style=style, explode=explodes))
        if not fields and is_required:
            raise Unsupported("its form has no fields")
        return fields

    def _build_url(self) -> str:
        parts: list[str] = []
        position = 0
        path = self._operation.path
        for match in _PATH_PARAMETER.finditer(path):
            if match[1] not in self._path_expressions:
                # Documents forget to declare them.
                argument = self._arguments.add(match[1], {"type": "string"}, required=True)
                self._path_expressions[match[1]] = f"{{{argument}}}"
            parts += [_quote_path(path[position : match.start()]), self._path_expressions[match[1]]]
            position = match.end()
        parts.append(_quote_path(path[position:]))
        return self._server_url.rstrip("/") + "".join(parts)


def _quote_path(text: str) -> str:
    path, separator, query = text.partition("?")
    return quote(path, safe="/:@!$&'()*+,;=-._~%") + separator + quote(query, safe="/:@!$&'()*+,;=-._~%?")


def _is_json(media_type: str) -> bool:
    kind = media_type.partition(";")[0].strip().lower()
    return kind in ("application/json", "*/*", "text/json") or kind.endswith("+json")


def _accepts_null(schema: JsonObject) -> bool:
    kinds = schema.get("type")
    alternatives = [*as_list(schema.get("anyOf")), *as_list(schema.get("oneOf"))]
    if schema.get("nullable") is True or (isinstance(kinds, list) and "null" in kinds):
        return True
    return any(as_object(part).get("type") == "null" for part in alternatives)
