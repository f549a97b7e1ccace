"""An operation of OpenAPI as a definition: parameters, bodies, URL."""

import re
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from gateway_runtime.http_tools.definitions import DefinedTool, WireField
from tools_server.http_tools.openapi.bodies import Arguments, BodyMapper, get_schema, is_json
from tools_server.http_tools.openapi.document import JsonObject, OpenApiDocument, Unsupported, as_list, as_object
from tools_server.http_tools.openapi.schemas import SchemaConverter
from tools_server.http_tools.openapi.security import map_security

METHODS = ("get", "head", "post", "put", "patch", "delete")
_OPERATORS = {"simple": "", "label": ".", "matrix": ";"}
_STYLES = ("form", "spaceDelimited", "pipeDelimited", "deepObject")
_IGNORED_HEADERS = ("accept", "content-type", "authorization")
_MAX_DESCRIPTION_LENGTH = 2_000
_PATH_PARAMETER = re.compile(r"\{([^{}]+)\}")


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
        self._arguments = Arguments()
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
        body = BodyMapper(self._document, self._schemas, self._arguments, self._notes).map(
            self._operation.node, self._operation.method
        )
        url = self._build_url()
        self._headers |= body.headers | authentication.headers
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
            body=body.template,
            body_format=body.format,
            form=body.form,
            form_type=body.form_type,
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
                    self._headers[name] = f"{{{argument}{'*' if parameter.get('explode') is True else ''}}}"
            case "cookie":
                argument = self._arguments.add(name, schema, required=is_required)
                self._cookies.append(f"{name}={{{argument}}}")
            case _:
                raise Unsupported(f"the parameter {name[:60]} is in {str(place)[:20]!r}")

    def _get_schema(self, parameter: JsonObject) -> tuple[JsonObject, bool]:
        """Return a parameter's schema, and whether it is sent as JSON."""
        for media_type, content in as_object(parameter.get("content")).items():
            return self._schemas.convert(get_schema(as_object(content))), is_json(media_type)
        return self._schemas.convert(get_schema(parameter)), False

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
