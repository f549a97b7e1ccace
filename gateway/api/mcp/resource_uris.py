"""URIs of resources that several servers have."""

from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote

from gateway.domain.messages import JsonObject
from gateway.ports.tools import ITEM_NAME_FIELDS, ItemKind

_PREFIX, _PAGES = "agent-gateway://", "ui://"
_PAGE_PREFIX = f"{_PAGES}agent-gateway/"


def qualify_duplicates(kind: ItemKind, items: Iterable[JsonObject]) -> Iterator[JsonObject]:
    """Yield the items, with the server's name in repeated URIs.

    A host's request has only a URI, and that of the first item would always be read. URIs of another gateway get the
    name, too. Prompts have unique names already.
    """
    field, uris = ITEM_NAME_FIELDS[kind], set[str]()
    for item in items:
        uri = item[field]
        is_ambiguous = kind != "prompts" and (uri in uris or uri.startswith((_PREFIX, _PAGE_PREFIX)))
        uris.add(uri)
        yield {**item, field: make_server_uri(item["server"], uri)} if is_ambiguous else item


def make_server_uri(server: str, uri: str) -> str:
    """Return a URI that names the server, too.

    The URI of a page of MCP Apps stays one.
    """
    name = quote(server, safe="")
    return f"{_PAGE_PREFIX}{name}/{uri.removeprefix(_PAGES)}" if uri.startswith(_PAGES) else f"{_PREFIX}{name}/{uri}"


def split_uri(uri: str) -> tuple[str | None, str]:
    """Return the server that a URI names, and its own URI."""
    for prefix, own_start in ((_PREFIX, ""), (_PAGE_PREFIX, _PAGES)):
        server, slash, own_uri = uri.removeprefix(prefix).partition("/")
        if uri.startswith(prefix) and slash:
            return unquote(server), f"{own_start}{own_uri}"
    return None, uri
