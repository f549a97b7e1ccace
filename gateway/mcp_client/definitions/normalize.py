"""Normalizes lists and handshakes of servers before the SDK reads them.

The SDK refuses a whole list for one definition that does not fit the protocol.
"""

import asyncio
from typing import Any, NamedTuple, cast

from mcp.types import Prompt, Resource, ResourceTemplate, Tool
from mcp_types.methods import validate_server_result
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

from gateway.domain.messages import JsonObject
from gateway.mcp_client.definitions.limits import MAX_ITEM_CHARS, MAX_ITEM_NODES, find_invalid_header
from gateway.mcp_client.definitions.problems import DefinitionProblems
from gateway.mcp_client.definitions.repair import Misfit, find_misfit, remove_misfits
from gateway.mcp_client.definitions.schema_repair import repair_schema
from gateway.mcp_client.results.normalize import normalize_result, set_modern_members
from gateway.ports.tools import DefinitionKind
from gateway_runtime.json_schema.rules import SchemaTooLarge, measure_value

_MAX_SHOWN_PROBLEMS = 5
_ITEMS_AT_ONCE = 20
_FIRST_VERSION = "2025-11-25"
"""The version that the SDK assumes before the handshake has ended."""
_MODERN_MEMBERS: JsonObject = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
HANDSHAKES = {"initialize": ("serverInfo", "capabilities"), "server/discover": ("capabilities",)}
"""Methods of the handshakes, with the members that must be objects."""


class _ListMethod(NamedTuple):
    """How a method lists items.

    `key` is the member of the result that has them. `required` are the members of an item that cannot be left out; the
    first one names it.
    """

    key: str
    kind: DefinitionKind
    model: type[BaseModel]
    required: tuple[str, ...]


LIST_METHODS = {
    "tools/list": _ListMethod("tools", "tool", Tool, ("name", "inputSchema")),
    "resources/list": _ListMethod("resources", "resource", Resource, ("uri", "name")),
    "resources/templates/list": _ListMethod(
        "resourceTemplates", "resource_template", ResourceTemplate, ("uriTemplate", "name")
    ),
    "prompts/list": _ListMethod("prompts", "prompt", Prompt, ("name",)),
}


class ResultNormalizer:
    """Makes results of a server fit the protocol where possible.

    Of lists and handshakes, an optional member that does not fit is removed, and a schema repaired. An item whose
    required members do not fit is left out. `problems` gets each of these.
    """

    def __init__(self, problems: DefinitionProblems) -> None:
        self._problems = problems

    async def normalize_result(self, method: str, params: JsonObject, result: JsonObject, version: str | None) -> None:
        """Normalize the result of a request in place."""
        if method in HANDSHAKES:
            self._normalize_handshake(method, result)
        elif (listing := LIST_METHODS.get(method)) is not None:
            if params.get("cursor") is None:
                self._problems.begin_list(listing.kind)
            await self._normalize_list(method, listing, result, version or _FIRST_VERSION)
        else:
            normalize_result(method, params, result, version or _FIRST_VERSION)

    def _normalize_handshake(self, method: str, result: JsonObject) -> None:
        self._problems.begin_list("server")
        required = HANDSHAKES[method]
        for member in required:
            if not isinstance(result.get(member), dict):
                result[member] = {}
                self._problems.add("server", "", f"{member}: must be an object", left_out=False)
        capabilities: JsonObject = result["capabilities"]
        capabilities.update({name: {} for name, value in capabilities.items() if value is True})
        version = MODERN_PROTOCOL_VERSIONS[-1]
        if method == "server/discover":
            set_modern_members(result)
        else:
            version = _FIRST_VERSION
            info: JsonObject = result["serverInfo"]
            info.update({name: str(info.get(name) or "") for name in ("name", "version")})

        def find() -> Misfit | None:
            return find_misfit(lambda: validate_server_result(method, version, result), ())

        for problem in remove_misfits(result, required, find).problems:
            self._problems.add("server", "", problem, left_out=False)

    async def _normalize_list(self, method: str, listing: _ListMethod, result: JsonObject, version: str) -> None:
        items = result.get(listing.key)
        if not isinstance(items, list):
            if items is not None:
                self._problems.add(listing.kind, "", f"{listing.key}: must be a list", left_out=True)
            items = []
        cursor = result.get("nextCursor")
        if cursor is not None and not isinstance(cursor, str):
            del result["nextCursor"]
            self._problems.add(listing.kind, "", "nextCursor: must be a text", left_out=True)
        accepted: list[JsonObject] = []
        for number, item in enumerate(cast("list[Any]", items), start=1):
            if self._normalize_item(method, listing, version, item):
                accepted.append(item)
            if number % _ITEMS_AT_ONCE == 0:
                await asyncio.sleep(0)  # other tasks run
        result[listing.key] = accepted
        if version in MODERN_PROTOCOL_VERSIONS:
            set_modern_members(result)

    def _normalize_item(self, method: str, listing: _ListMethod, version: str, item: Any) -> bool:
        """Normalize an item in place; return whether it can be used."""
        if not isinstance(item, dict):
            self._problems.add(listing.kind, "", "must be an object", left_out=True)
            return False
        definition = cast("JsonObject", item)
        name = definition.get(listing.required[0])
        try:
            measure_value(definition, max_nodes=MAX_ITEM_NODES, max_chars=MAX_ITEM_CHARS)
        except SchemaTooLarge as error:
            self._problems.add(listing.kind, name, str(error), left_out=True)
            return False
        is_modern = version in MODERN_PROTOCOL_VERSIONS
        problems = _normalize_schemas(definition, is_modern=is_modern) if listing.kind == "tool" else []
        if "name" in listing.required and not isinstance(definition.get("name"), str) and isinstance(name, str):
            definition["name"] = name
            problems.append("name: is missing")
        result: JsonObject = {**(_MODERN_MEMBERS if is_modern else {}), listing.key: [definition]}

        def find() -> Misfit | None:
            misfit = find_misfit(lambda: validate_server_result(method, version, result), (listing.key, 0))
            return misfit or find_misfit(lambda: listing.model.model_validate(definition, by_name=False), ())

        repair = remove_misfits(definition, listing.required, find)
        problems += repair.problems
        is_usable = repair.is_usable
        if is_usable and is_modern and listing.kind == "tool":  # the SDK would leave it out without a word
            reason = find_invalid_header(definition["inputSchema"])
            is_usable, problems = reason is None, problems + ([] if reason is None else [f"x-mcp-header: {reason}"])
        if problems:
            problem = "; ".join(problems[-_MAX_SHOWN_PROBLEMS:])
            self._problems.add(listing.kind, name, problem, left_out=not is_usable)
        return is_usable


def _normalize_schemas(tool: JsonObject, *, is_modern: bool) -> list[str]:
    """Repair both schemas of a tool in place; return the problems."""
    schema, output_schema = tool.get("inputSchema"), tool.get("outputSchema")
    problems: list[str] = []
    if schema is None or schema is True:
        tool["inputSchema"] = {"type": "object"}
        problems.append("inputSchema: is missing")
    elif isinstance(schema, dict):
        problems += _normalize_schema("inputSchema", cast("JsonObject", schema), must_be_object=True)
    if isinstance(output_schema, dict):
        problems += _normalize_schema("outputSchema", cast("JsonObject", output_schema), must_be_object=not is_modern)
    return problems


def _normalize_schema(name: str, schema: JsonObject, *, must_be_object: bool) -> list[str]:
    problems = repair_schema(schema)
    kind = schema.get("type")
    if must_be_object and (kind is None or (isinstance(kind, list) and (not kind or "object" in kind))):
        schema["type"] = "object"
        problems.append("type: must be object")
    return [f"{name}.{problem}" for problem in problems]
