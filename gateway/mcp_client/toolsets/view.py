"""Resolves each caller's toolset, for tools, resources and prompts."""

from fnmatch import fnmatchcase

import msgspec

from gateway.common.concurrency import LruDict
from gateway.common.mcp_meta import get_ui_resource
from gateway.domain.errors import ToolsetNotFound
from gateway.domain.messages import (
    JsonObject,
    PendingInput,
    Principal,
    ToolResult,
    ToolSpec,
    matches_any_glob,
    text_block,
)
from gateway.domain.resource_globs import permits_uri
from gateway.domain.toolsets import Toolset
from gateway.mcp_client.builtin_tools import SIGN_IN
from gateway.mcp_client.policy.access import READER_TOOLS, ItemPermissions
from gateway.mcp_client.toolsets.selection import ToolsetSelection, restore_tool, select_toolset
from gateway.ports.tools import ITEM_NAME_FIELDS, ItemKind, Toolbox, ToolCallRequest
from gateway.ports.toolsets import ToolsetCatalog

_MAX_SELECTIONS = 200
_NOTHING = ToolsetSelection((), ())
_Source = tuple[Toolset, tuple[ToolSpec, ...]]


class ToolsetToolbox(ItemPermissions):
    """Shows a caller with a toolset that alone, under its names.

    It is the outermost wrapper: rules, redaction and telemetry inside see the original tools. A toolset that does not
    exist shows nothing.
    """

    def __init__(self, toolbox: Toolbox, catalog: ToolsetCatalog) -> None:
        super().__init__(toolbox, ())
        self._catalog = catalog
        self._selections: LruDict[tuple[str, str], tuple[_Source, ToolsetSelection]] = LruDict(_MAX_SELECTIONS)

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        if principal is None or principal.toolset is None:
            return self._toolbox.list_specs(principal)
        return self._select(principal).specs

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        if principal is None or principal.toolset is None:
            return self._toolbox.find_tool(name, principal)
        specs = self._select(principal).specs
        spec = next((spec for spec in specs if spec.name == name), None)
        if spec is not None:
            return spec
        # By a former name, or the tool of a sign-in that has ended: both may be absent from the list.
        spec = self._toolbox.find_tool(name, principal)
        shown = None if spec is None else self._find_shown(spec, principal)
        return None if shown is None or shown.original_name else shown

    def _find_shown(self, spec: ToolSpec, principal: Principal) -> ToolSpec | None:
        """Return a tool as the toolset shows it; None: it does not."""
        specs = self._select(principal).specs
        shown = next((own for own in specs if own.identity == spec.identity), None)
        if shown is None and spec.helper and spec.tool == SIGN_IN and any(own.server == spec.server for own in specs):
            return spec
        return shown

    def list_missing_tools(self, principal: Principal) -> tuple[str, ...]:
        if principal.toolset is None:
            return ()
        if self._catalog.find_toolset(principal.toolset) is None:
            raise ToolsetNotFound(f"There is no toolset {principal.toolset[:100]!r}.", param="toolset")
        return self._select(principal).missing

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        if request.principal.toolset is None:
            return await self._toolbox.call_tool(request)
        if self._find_shown(request.spec, request.principal) is None:
            note = f"The tool {request.spec.name!r} is not in the toolset {request.principal.toolset!r}."
            return ToolResult("denied", [text_block(note)])
        return await self._toolbox.call_tool(msgspec.structs.replace(request, spec=restore_tool(request.spec)))

    def _select(self, principal: Principal) -> ToolsetSelection:
        toolset = self._catalog.find_toolset(principal.toolset or "")
        if toolset is None:
            return _NOTHING
        specs, key = self._toolbox.list_specs(principal), (principal.user, toolset.name)
        source, selection = self._selections.get(key, (None, _NOTHING))
        if source is None or source[0] is not toolset or source[1] is not specs:
            selection = select_toolset(toolset.definition, specs)
            self._selections[key] = (toolset, specs), selection
        return selection

    # --- resources and prompts

    def _permits_everything(self, principal: Principal) -> bool:
        return principal.toolset is None

    def _may_use_item(self, kind: ItemKind, item: JsonObject, principal: Principal) -> bool:
        toolset = self._catalog.find_toolset(principal.toolset or "")
        if toolset is None:
            return False
        server, name = item["server"], item[ITEM_NAME_FIELDS[kind]]
        own = [spec for spec in self._select(principal).specs if spec.server == server]
        if any(spec.helper and spec.tool in READER_TOOLS[kind] for spec in own):
            return True
        if kind == "prompts":
            names = (name, f"{server}/{item.get('prompt', name)}")
            return any(matches_any_glob(name, toolset.definition.prompts) for name in names)
        globs = _get_server_globs(toolset.definition.resources, server)
        if kind == "resource_templates":
            return bool(globs) and matches_any_glob(name, globs)
        is_page = any(get_ui_resource((spec.definition or {}).get("_meta")) == name for spec in own)
        return is_page or (bool(globs) and permits_uri(name, globs))


def _get_server_globs(globs: tuple[str, ...], server: str) -> tuple[str, ...]:
    """Return the globs over URIs of those over `server/uri`."""
    parts = (("*", "*") if glob == "*" else tuple(glob.partition("/")[::2]) for glob in globs)
    return tuple(uri for name, uri in parts if fnmatchcase(server, name))
