"""An OpenAPI 3 document: parsing, and references inside of it."""

import importlib
import json
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import unquote, urljoin, urlsplit

from gateway_runtime.json_limits import MAX_DEPTH, JsonLimitExceeded, check_json
from tools_server.http_tools.errors import DefinitionError

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_YAML_BYTES = 2 * 1024 * 1024
_MAX_ITEMS = 1_500_000
_MAX_REFERENCES = 32

JsonObject = dict[str, Any]


class DocumentInvalid(DefinitionError):
    """A document that cannot be imported."""

    def __init__(self, problem: str) -> None:
        super().__init__(422, "invalid_request", f"document: {problem}", "document")


class Unsupported(Exception):
    """A part of an operation that cannot be imported.

    `str()` is the reason.
    """


class OpenApiDocument:
    """A parsed document of OpenAPI 3.0, 3.1 or 3.2."""

    def __init__(self, root: JsonObject, url: str | None) -> None:
        """Raises:
        DocumentInvalid: it is not OpenAPI 3.
        """
        version = root.get("openapi")
        if not isinstance(version, str) or not version.startswith(("3.0", "3.1", "3.2")):
            kind = "Swagger 2, which must be converted" if "swagger" in root else "not OpenAPI 3.0, 3.1 or 3.2"
            raise DocumentInvalid(f"it is {kind}")
        self.root = root
        self.url = url
        self.is_3_0 = version.startswith("3.0")
        self.paths = as_object(root.get("paths"))
        self.title = str(as_object(root.get("info")).get("title") or "untitled")[:200]

    def resolve(self, node: Any) -> JsonObject:
        """Return an object, references followed.

        Raises:
            Unsupported: a reference leads out of the document, to nothing, or in a circle.
        """
        for _ in range(_MAX_REFERENCES):
            if not isinstance(node, dict):
                raise Unsupported("a part is not an object")
            target = cast(JsonObject, node).get("$ref")
            if not isinstance(target, str):
                return cast(JsonObject, node)
            node = self.find(target)
        raise Unsupported("a reference leads in a circle")

    def find(self, reference: str) -> Any:
        """Return the target of a reference.

        Raises:
            Unsupported: it leads out of the document, or to nothing.
        """
        if not reference.startswith("#"):
            raise Unsupported(f"the reference {reference[:100]!r} leads out of the document")
        node: Any = self.root
        for token in unquote(reference[1:]).split("/")[1:]:
            step = token.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and step in node:
                node = cast(JsonObject, node)[step]
            elif isinstance(node, list) and step.isdigit() and int(step[:6]) < len(cast("list[Any]", node)):
                node = cast("list[Any]", node)[int(step[:6])]
            else:
                raise Unsupported(f"the reference {reference[:100]!r} leads to nothing")
        return node

    def find_server(self, *owners: JsonObject) -> str | None:
        """Return the URL of the first server, or None.

        The first owner that has servers counts.
        """
        for owner in (*owners, self.root):
            for server in as_list(owner.get("servers")):
                return self._fill_in(as_object(server))
        return None if self.url is None else urljoin(self.url, "/")

    def _fill_in(self, server: JsonObject) -> str | None:
        url = str(server.get("url") or "/")
        for name, variable in as_object(server.get("variables")).items():
            url = url.replace(f"{{{name}}}", str(as_object(variable).get("default") or ""))
        if not urlsplit(url).scheme:
            return None if self.url is None else urljoin(self.url, url)
        return url


def as_object(value: Any) -> JsonObject:
    """Return an object; an empty one instead of anything else."""
    return cast(JsonObject, value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list; an empty one instead of anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def parse_document(content: str | JsonObject, url: str | None) -> OpenApiDocument:
    """Parse a document of JSON or YAML.

    Raises:
        DocumentInvalid: it is too large, neither JSON nor YAML, or not OpenAPI 3.
    """
    root: Any = parse_text(content) if isinstance(content, str) else content
    if not isinstance(root, dict):
        raise DocumentInvalid("it is not an object")
    return OpenApiDocument(cast(JsonObject, root), url)


def parse_text(text: str) -> Any:
    """Parse JSON or YAML. Raises like `parse_document`."""
    encoded = text.encode(errors="replace")
    if len(encoded) > MAX_JSON_BYTES:
        raise DocumentInvalid(f"it is larger than {MAX_JSON_BYTES:,} bytes")
    try:
        if text.lstrip("\ufeff \t\r\n").startswith("{"):
            check_json(encoded, max_items=_MAX_ITEMS)
            return json.loads(text.lstrip("\ufeff"))
    except JsonLimitExceeded as error:
        raise DocumentInvalid(str(error)) from None
    except (ValueError, RecursionError):
        pass  # a flow mapping of YAML begins like JSON
    if len(encoded) > MAX_YAML_BYTES:
        raise DocumentInvalid(f"as YAML, it is larger than {MAX_YAML_BYTES:,} bytes: convert it to JSON")
    return _parse_yaml(text)


def _check_events(yaml: Any, events: Iterable[Any]) -> None:
    """Refuse deep nesting and too many values, before anything is built.

    libyaml takes quadratic time for the depth of lists, and few lines of aliases are billions of values.
    """
    sizes: dict[str, int] = {}
    starts: list[tuple[str | None, int]] = []
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if (size := sizes.get(event.anchor)) is None:
                raise DocumentInvalid("an alias of YAML stands inside of its own value, or before it")
            count += size
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = starts.pop()
            if anchor is not None:
                sizes[anchor] = count - start
        elif isinstance(event, yaml.NodeEvent):
            count += 1
            if isinstance(event, yaml.CollectionStartEvent):
                starts.append((event.anchor, count - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if len(starts) > MAX_DEPTH:
            raise DocumentInvalid(f"it is nested more than {MAX_DEPTH} levels deep")
        if count > _MAX_ITEMS:
            raise DocumentInvalid(f"it has more than {_MAX_ITEMS:,} values, aliases counted")


def _parse_yaml(text: str) -> Any:
    """Parse YAML as JSON values."""
    yaml: Any = importlib.import_module("yaml")  # here, as few documents need it
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader_class: Any = type("Loader", (base,), {})
    loader_class.add_constructor("tag:yaml.org,2002:timestamp", base.construct_yaml_str)
    try:
        _check_events(yaml, yaml.parse(text, base))
        value = yaml.load(text, loader_class)
        encoded = json.dumps(value, ensure_ascii=False, allow_nan=False)
        check_json(encoded.encode(), max_items=_MAX_ITEMS)
        return json.loads(encoded)
    except JsonLimitExceeded as error:
        raise DocumentInvalid(str(error)) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise DocumentInvalid("it is neither JSON nor YAML") from None
