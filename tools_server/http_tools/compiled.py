"""A checked definition, which builds the HTTP requests of its calls."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from mcp.shared.inbound import find_invalid_x_mcp_header
from mcp.types import Tool, ToolAnnotations
from yarl import URL

from gateway_runtime.http_tools.definitions import DefinedTool
from gateway_runtime.json_schema.rules import SchemaInvalid, measure_value
from gateway_runtime.json_schema.validation import CompiledSchema, SchemaNotCheckable, find_error_off_loop
from tools_server.http_tools.bodies import compile_body, compile_field
from tools_server.http_tools.errors import CallFailed, DefinitionInvalid
from tools_server.http_tools.headers import HeaderTemplate
from tools_server.http_tools.templates import (
    ARGUMENT_NAME,
    CallValues,
    Placeholder,
    TemplateInvalid,
    UrlTemplate,
)
from tools_server.http_tools.wire_fields import render_fields

T = TypeVar("T")
MAX_DEFINITION_BYTES = 64 * 1024
_MAX_SCHEMA_NODES, _MAX_SCHEMA_CHARS = 4_000, 60_000
_MAX_URL_LENGTH, _MAX_BODY_BYTES = 8_000, 1024 * 1024
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_BODILESS = ("GET", "HEAD")
DEFAULT_HEADERS = {"User-Agent": "agent-gateway-tools/1", "Accept": "application/json, text/*;q=0.9, */*;q=0.5"}


@dataclass(frozen=True)
class BuiltRequest:
    """A request that is ready to be sent. The URL is encoded."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


class CompiledDefinition:
    """A definition whose templates and schema are checked."""

    def __init__(self, definition: DefinedTool) -> None:
        """Raises:
        DefinitionInvalid: a field is not valid.
        """
        self.definition = definition
        if len(definition.model_dump_json()) > MAX_DEFINITION_BYTES:
            raise DefinitionInvalid("definition", f"it is larger than {MAX_DEFINITION_BYTES:,} bytes")
        self._schema = _compile_schema(definition.input_schema)
        self._url = _parse("url", UrlTemplate, definition.url)
        self.origin = find_origin(self._url.base)
        self._query = [compile_field("query", index, field) for index, field in enumerate(definition.query)]
        self._headers = {name: HeaderTemplate(name, text) for name, text in definition.headers.items()}
        self._body = compile_body(definition)
        if self._body is not None and definition.method in _BODILESS:
            raise DefinitionInvalid("body", f"{definition.method} has no body")
        if definition.form_type == "multipart" and any(name.lower() == "content-type" for name in definition.headers):
            raise DefinitionInvalid("headers.Content-Type", "the multipart form sets it")
        self._check_placeholders()
        _check_pointers(definition.result.select)

    @property
    def secret_names(self) -> set[str]:
        """Names of the secrets that a call needs."""
        return {placeholder.name for _, placeholder in self._list_placeholders() if placeholder.kind != "argument"}

    def to_tool(self) -> Tool:
        """Build the tool that hosts see."""
        definition, hints = self.definition, self.definition.annotations
        reads = definition.method in _BODILESS
        return Tool(
            name=definition.name,
            title=definition.title,
            description=definition.description,
            input_schema=definition.input_schema,
            annotations=ToolAnnotations(
                title=definition.title,
                read_only_hint=_choose(hints.read_only, reads),
                destructive_hint=_choose(hints.destructive, not reads and not hints.read_only),
                idempotent_hint=_choose(hints.idempotent, reads or definition.method in ("PUT", "DELETE")),
                open_world_hint=_choose(hints.open_world, True),
            ),
        )

    async def check_arguments(self, arguments: dict[str, Any]) -> None:
        """Raises:
        CallFailed: the arguments do not match the schema.
        """
        try:
            error = await find_error_off_loop(self._schema, arguments)
        except SchemaNotCheckable:
            raise CallFailed("The arguments cannot be checked against the schema of this tool.") from None
        if error is not None:
            path = ".".join(map(str, error.absolute_path))
            raise CallFailed(f"Wrong arguments: {f'{path}: ' if path else ''}{error.message[:500]}")

    def build_request(self, arguments: dict[str, Any], secrets: dict[str, str]) -> BuiltRequest:
        """Build the request of a call, whose arguments were checked.

        Raises:
            CallFailed: an argument does not fit its place, or a secret is missing.
        """
        values = CallValues(arguments, secrets)
        url = self._url.render(values)
        if query := render_fields(self._query, values):
            url += ("&" if "?" in url else "?") + query
        if len(url) > _MAX_URL_LENGTH:
            raise CallFailed(f"The arguments make the URL longer than {_MAX_URL_LENGTH:,} characters.")
        headers = dict(DEFAULT_HEADERS)
        for name, template in self._headers.items():
            text = template.render(values)
            if text is not None:
                headers = {other: value for other, value in headers.items() if other.lower() != name.lower()}
                headers[name] = text
        body = None if self._body is None else self._body.build(values)
        if body is None:
            return BuiltRequest(self.definition.method, url, headers, None)
        if len(body.content) > _MAX_BODY_BYTES:
            raise CallFailed(f"The arguments make a body of more than {_MAX_BODY_BYTES:,} bytes.")
        if all(name.lower() != "content-type" for name in headers):
            headers["Content-Type"] = body.content_type
        return BuiltRequest(self.definition.method, url, headers, body.content)

    def _list_placeholders(self) -> Iterable[tuple[str, Placeholder]]:
        yield from (("url", placeholder) for placeholder in self._url.placeholders)
        yield from (("query", placeholder) for field in self._query for placeholder in field.placeholders)
        for name, template in self._headers.items():
            yield from ((f"headers.{name}", placeholder) for placeholder in template.placeholders)
        place = "body" if self.definition.form is None else "form"
        yield from ((place, placeholder) for placeholder in (self._body.placeholders if self._body else ()))

    def _check_placeholders(self) -> None:
        schema = self.definition.input_schema
        properties = cast("dict[str, Any]", schema.get("properties", {}))
        for field, placeholder in self._list_placeholders():
            if placeholder.kind == "argument" and placeholder.name not in properties:
                raise DefinitionInvalid(field, f"{placeholder.name!r} is not a property of input_schema")
        required = schema.get("required", [])
        for name in self._url.list_variables(path_only=True):
            if name not in required:
                raise DefinitionInvalid("input_schema", f"{name!r} is part of the URL's path and must be required")


def find_origin(base: str) -> str:
    """Return scheme, host and port as browsers write them.

    Raises:
        DefinitionInvalid: it has no valid host or port.
    """
    try:
        url = URL(base)
        origin = url.origin()
    except ValueError:
        raise DefinitionInvalid("url", "has no valid host or port") from None
    if url.user or url.password or not origin.host:
        raise DefinitionInvalid("url", "must have a host, and no login")
    return str(origin)


def _compile_schema(schema: dict[str, Any]) -> CompiledSchema:
    if schema.get("type") != "object":
        raise DefinitionInvalid("input_schema", 'its "type" must be "object"')
    try:
        measure_value(schema, max_nodes=_MAX_SCHEMA_NODES, max_chars=_MAX_SCHEMA_CHARS)
        compiled = CompiledSchema(schema)
    except SchemaInvalid as error:
        raise DefinitionInvalid("input_schema", str(error)) from None
    _check_references(schema)
    for name in cast("dict[str, Any]", schema.get("properties", {})):
        if not ARGUMENT_NAME.fullmatch(name):
            raise DefinitionInvalid("input_schema", f"{name[:80]!r} is not a name of letters, digits, - and _")
    if find_invalid_x_mcp_header(schema) is not None:
        raise DefinitionInvalid("input_schema", "has an x-mcp-header that is not valid")
    return compiled


def _check_references(schema: dict[str, Any]) -> None:
    """Refuse references to anything outside of the schema."""
    pending: list[Any] = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            members = cast("dict[str, Any]", node)
            for keyword in _REFERENCES:
                target = members.get(keyword)
                if isinstance(target, str) and not target.startswith("#"):
                    raise DefinitionInvalid("input_schema", f"{keyword} {target[:80]!r} leads out of the schema")
            pending.extend(members.values())
        elif isinstance(node, list):
            pending.extend(cast("list[Any]", node))


def _check_pointers(select: str | dict[str, str] | None) -> None:
    pointers = select.values() if isinstance(select, dict) else () if select is None else (select,)
    if isinstance(select, dict) and len(select) > 50:
        raise DefinitionInvalid("result.select", "has more than 50 pointers")
    for pointer in pointers:
        if (pointer and not pointer.startswith("/")) or len(pointer) > 500 or pointer.count("*") > 5:
            raise DefinitionInvalid("result.select", f"{pointer[:80]!r} is not a JSON pointer such as /items/*/name")


def _parse(field: str, parser: Callable[[Any], T], value: Any) -> T:
    try:
        return parser(value)
    except TemplateInvalid as error:
        raise DefinitionInvalid(field, str(error)) from None


def _choose(value: bool | None, default: bool) -> bool:
    return default if value is None else value
