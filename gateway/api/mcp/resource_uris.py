"""URIs of resources that several servers have."""

from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote

from gateway.domain.messages import JsonObject
from gateway.ports.tools import ITEM_NAME_FIELDS, ItemKind

_PREFIX = "agent-gateway://"


def qualify_duplicates(kind: ItemKind, items: Iterable[JsonObject]) -> Iterator[JsonObject]:
    """Yield the items, with the server's name in repeated URIs.

    A host's request has only a URI, and that of the first item would always be read. URIs of another gateway get the
    name, too. Prompts have unique names already.
    """
    field, uris = ITEM_NAME_FIELDS[kind], set[str]()
    for item in items:
        uri = item[field]
        is_ambiguous = kind != "prompts" and (uri in uris or uri.startswith(_PREFIX))
        uris.add(uri)
        yield {**item, field: f"{_PREFIX}{quote(item['server'], safe='')}/{uri}"} if is_ambiguous else item


def split_uri(uri: str) -> tuple[str | None, str]:
    """Return the server that a URI names, and its own URI."""
    server, slash, own_uri = uri.removeprefix(_PREFIX).partition("/")
    return (unquote(server), own_uri) if uri.startswith(_PREFIX) and slash else (None, uri)
