"""Pages of MCP Apps that several servers offer under one `ui://` URI."""

from collections.abc import Mapping, Sequence

import msgspec

from gateway.api.mcp.resource_uris import make_server_uri, split_uri
from gateway.common.mcp_meta import get_ui_resource, replace_ui_resource
from gateway.domain.messages import ToolSpec


class AppResources:
    """Finds servers of pages, and keeps the pages' URIs unique.

    Servers may leave pages out of their lists, so the tools tell whose they are. A page belongs to the first server
    whose tool names it; the tools of another server get a URI with its name.
    """

    def __init__(self) -> None:
        self._specs: Sequence[ToolSpec] = ()
        self._owners: Mapping[str, str] = {}

    def find_server(self, uri: str, specs: Sequence[ToolSpec]) -> tuple[str | None, str]:
        """Return the server of a host's URI, and its own URI.

        None: the URI neither names nor implies a server.
        """
        server, own_uri = split_uri(uri)
        return server or self._find_owners(specs).get(own_uri), own_uri

    def qualify_tool(self, spec: ToolSpec, specs: Sequence[ToolSpec]) -> ToolSpec:
        """Return the tool with a URI of its own server's page."""
        uri = _get_uri(spec)
        if uri is None or self._find_owners(specs)[uri] == spec.server:
            return spec
        definition = spec.definition or {}
        meta = replace_ui_resource(definition["_meta"], make_server_uri(spec.server, uri))
        return msgspec.structs.replace(spec, definition={**definition, "_meta": meta})

    def _find_owners(self, specs: Sequence[ToolSpec]) -> Mapping[str, str]:
        if specs is not self._specs:
            owners: dict[str, str] = {}
            for spec in specs:
                if (uri := _get_uri(spec)) is not None:
                    owners.setdefault(uri, spec.server)
            self._specs, self._owners = specs, owners
        return self._owners


def _get_uri(spec: ToolSpec) -> str | None:
    return get_ui_resource((spec.definition or {}).get("_meta"))
