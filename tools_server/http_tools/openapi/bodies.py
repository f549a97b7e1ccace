"""Request bodies of OpenAPI as bodies and forms of definitions."""

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from gateway_runtime.http_tools.definitions import BodyFormat, FormType, WireField
from tools_server.http_tools.openapi.document import JsonObject, OpenApiDocument, Unsupported, as_list, as_object
from tools_server.http_tools.openapi.names import make_unique, to_identifier
from tools_server.http_tools.openapi.schemas import SchemaConverter

_FORM, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_FORM_STYLES = ("form", "spaceDelimited", "pipeDelimited", "deepObject")
_COMPOSITIONS = ("allOf", "anyOf", "oneOf", "nullable")
_MAX_PARTS_DEPTH = 8
_BYTES_NOTE = "Base64 of the bytes that are sent."


@dataclass
class Arguments:
    """Arguments of the definition, with those that each parameter became."""

    properties: JsonObject = field(default_factory=dict[str, Any])
    required: list[str] = field(default_factory=list[str])

    def add(self, name: str, schema: JsonObject, *, required: bool) -> str:
        argument = make_unique(to_identifier(name), self.properties)
        self.properties[argument] = schema
        if required:
            self.required.append(argument)
        return argument


@dataclass
class MappedBody:
    """Fields of a definition that a request body became."""

    template: Any = None
    format: BodyFormat = "json"
    form: list[WireField] | None = None
    form_type: FormType = "urlencoded"
    headers: dict[str, str] = field(default_factory=dict[str, str])


class BodyMapper:
    """Maps the body of one operation.

    JSON is preferred, then forms, then texts, then bytes.
    """

    def __init__(
        self, document: OpenApiDocument, schemas: SchemaConverter, arguments: Arguments, notes: list[str]
    ) -> None:
        self._document = document
        self._schemas = schemas
        self._arguments = arguments
        self._notes = notes

    def map(self, operation: JsonObject, method: str) -> MappedBody:
        """Map the body.

        Raises:
            Unsupported: it is required, and cannot be mapped.
        """
        if (node := operation.get("requestBody")) is None or method in ("get", "head"):
            return MappedBody()
        body = self._document.resolve(node)
        is_required = body.get("required") is True
        contents = as_object(body.get("content"))
        for matches in (is_json, _is_form, _is_multipart, _is_text, _is_bytes):
            for media_type, content in contents.items():
                if matches(media_type):
                    return self._map_content(media_type, as_object(content), is_required)
        if contents and is_required:
            raise Unsupported(f"its body is {next(iter(contents))[:60]}")
        if contents:
            self._notes.append(f"the optional body of {next(iter(contents))[:60]} is left out")
        return MappedBody()

    def _map_content(self, media_type: str, content: JsonObject, is_required: bool) -> MappedBody:
        if is_json(media_type):
            template = self._map_json(content, is_required)
            is_usual = media_type.partition(";")[0] in ("application/json", "*/*", "application/*")
            return MappedBody(template, headers={} if is_usual else {"Content-Type": media_type})
        if _is_form(media_type):
            return MappedBody(form=self._map_form(content, is_required))
        if _is_multipart(media_type):
            return MappedBody(form=self._map_multipart(content, is_required), form_type="multipart")
        headers = {} if "*" in media_type else {"Content-Type": media_type}
        if _is_text(media_type):
            schema: JsonObject = {"type": "string", "description": f"The body, as {media_type[:100]}."}
            return MappedBody(self._add_body(schema, is_required), "text", headers=headers)
        schema = {"type": "string", "contentEncoding": "base64", "description": _BYTES_NOTE}
        return MappedBody(self._add_body(schema, is_required), "base64", headers=headers)

    def _add_body(self, schema: JsonObject, is_required: bool) -> str:
        return f"{{{self._arguments.add('body', schema, required=is_required)}}}"

    def _map_json(self, content: JsonObject, is_required: bool) -> Any:
        """Map a JSON body.

        The properties of a plain object become arguments; any other body is one argument.
        """
        schema = get_schema(content)
        properties = self._find_plain_properties(schema)
        if properties is None:
            return self._add_body(self._schemas.convert(schema), is_required)
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
        if resolved.get("type", "object") != "object" or any(name in resolved for name in _COMPOSITIONS):
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

    def _list_fields(self, content: JsonObject) -> list[tuple[str, Any, JsonObject, JsonObject]]:
        """List names, schemas, resolved schemas and encodings of a form.

        Its schema may be composed of others by `allOf`.
        """
        encodings = as_object(content.get("encoding"))
        return [
            (name, member, self._document.resolve(member), as_object(encodings.get(name)))
            for name, member in self._collect(get_schema(content), 0)[0].items()
        ]

    def _collect(self, schema: Any, depth: int) -> tuple[JsonObject, list[Any]]:
        """Collect properties and required names, also of the parts of `allOf`."""
        resolved = self._document.resolve(schema)
        properties, required = dict(as_object(resolved.get("properties"))), list(as_list(resolved.get("required")))
        for part in as_list(resolved.get("allOf")) if depth < _MAX_PARTS_DEPTH else ():
            more, names = self._collect(part, depth + 1)
            properties, required = more | properties, [*required, *names]
        return properties, required

    def _map_form(self, content: JsonObject, is_required: bool) -> list[WireField]:
        _, required = self._collect(get_schema(content), 0)
        fields: list[WireField] = []
        for name, member, resolved, encoding in self._list_fields(content):
            style = encoding.get("style")
            if style not in _FORM_STYLES:
                style = "json" if resolved.get("type") == "object" else "form"
            explodes = encoding.get("explode") is not False
            argument = self._arguments.add(
                name, self._schemas.convert(member), required=is_required and name in required
            )
            fields.append(WireField(name=name, argument=argument, style=cast("Any", style), explode=explodes))
        if not fields and is_required:
            raise Unsupported("its form has no fields")
        return fields

    def _map_multipart(self, content: JsonObject, is_required: bool) -> list[WireField]:
        _, required = self._collect(get_schema(content), 0)
        fields: list[WireField] = []
        for name, member, resolved, encoding in self._list_fields(content):
            is_needed = is_required and name in required
            media_type = str(encoding.get("contentType") or "").partition(",")[0].strip()
            media_type = media_type if media_type and "*" not in media_type else None
            if (shape := self._find_file(resolved)) is not None:
                argument = self._arguments.add(name, _describe_file(shape, resolved), required=is_needed)
                name_schema: JsonObject = {"type": "string", "description": f"Name of the file {argument}."}
                file_name = f"{{{self._arguments.add(f'{name}_file_name', name_schema, required=False)}}}"
                file = WireField(name=name, argument=argument, media_type=media_type, file_name=file_name, base64=True)
                fields.append(file)
            else:
                argument = self._arguments.add(name, self._schemas.convert(member), required=is_needed)
                is_plain = resolved.get("type") not in ("object", None) or not _has_members(resolved)
                style = "form" if is_plain else "json"
                fields.append(WireField(name=name, argument=argument, style=style, media_type=media_type))
        if not fields and is_required:
            raise Unsupported("its form has no fields")
        return fields

    def _find_file(self, schema: JsonObject) -> Literal["one", "many"] | None:
        """Return whether a schema describes a file, or a list of files."""
        if _is_file(schema):
            return "one"
        if schema.get("type") == "array" and _is_file(self._document.resolve(schema.get("items", {}))):
            return "many"
        return None


def _is_file(schema: JsonObject) -> bool:
    """Return whether a schema describes a file."""
    if schema.get("format") == "binary" or schema.get("type") == "file":
        return True
    return "contentMediaType" in schema and "contentEncoding" not in schema


def _describe_file(shape: Literal["one", "many"], schema: JsonObject) -> JsonObject:
    text = schema.get("description")
    description = f"{text[:400]} {_BYTES_NOTE}" if isinstance(text, str) and text else _BYTES_NOTE
    file: JsonObject = {"type": "string", "contentEncoding": "base64", "description": description}
    return file if shape == "one" else {"type": "array", "items": file}


def _has_members(schema: JsonObject) -> bool:
    return any(name in schema for name in ("properties", "additionalProperties", "allOf", "anyOf", "oneOf"))


def get_schema(owner: JsonObject) -> Any:
    """Return the schema of a parameter or a body.

    Documents have null for one that accepts anything.
    """
    schema = owner.get("schema")
    return {} if schema is None else schema


def _get_kind(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    kind = _get_kind(media_type)
    return kind in ("application/json", "*/*", "application/*", "text/json") or kind.endswith("+json")


def _is_form(media_type: str) -> bool:
    return _get_kind(media_type) == _FORM


def _is_multipart(media_type: str) -> bool:
    return _get_kind(media_type) == _MULTIPART


def _is_text(media_type: str) -> bool:
    kind = _get_kind(media_type)
    texts = ("application/xml", "application/yaml", "application/x-ndjson", "application/graphql")
    return kind.startswith("text/") or kind in texts or kind.endswith(("+xml", "+yaml"))


def _is_bytes(media_type: str) -> bool:
    kind = _get_kind(media_type)
    return kind.startswith(("application/", "image/", "audio/", "video/", "font/"))


def _accepts_null(schema: JsonObject) -> bool:
    kinds = schema.get("type")
    alternatives = [*as_list(schema.get("anyOf")), *as_list(schema.get("oneOf"))]
    if schema.get("nullable") is True or (isinstance(kinds, list) and "null" in kinds):
        return True
    return any(as_object(part).get("type") == "null" for part in alternatives)
