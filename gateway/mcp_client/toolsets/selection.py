"""The tools that a toolset shows, under its names."""

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase, translate

import msgspec

from gateway.common.sanitize import clean_text
from gateway.domain.messages import JsonObject, ToolSpec
from gateway.domain.toolsets import ToolsetDefinition, ToolsetTool
from gateway.mcp_client.builtin_tools import SIGN_IN

_MAX_DESCRIPTION_LENGTH = 4_000


class ToolsetSelection(msgspec.Struct, frozen=True):
    """The tools of a toolset at present, in the toolbox's order.

    `missing` are the entries that show no tool: there is none, or its name is that of another tool.
    """

    specs: tuple[ToolSpec, ...]
    missing: tuple[str, ...]


def select_toolset(definition: ToolsetDefinition, specs: Sequence[ToolSpec]) -> ToolsetSelection:
    """Select the tools of a toolset.

    An entry with a tool's name wins over one with wildcards, and the first entry over later ones. A tool does not take
    a name that an entry has given to another.
    """
    entries = definition.entries
    places = _find_places(entries, specs)
    given_names = {entries[place].name: number for number, place in places.items() if entries[place].name is not None}
    shown = {
        number: show_tool(specs[number], entries[place])
        for number, place in sorted(places.items())
        if given_names.get(entries[place].name or specs[number].name, number) == number
    }
    used = {places[number] for number in shown}
    helpers = _list_sign_ins(entries, specs, shown.keys())
    missing = tuple(entry.tool for place, entry in enumerate(entries) if place not in used)
    return ToolsetSelection((*shown.values(), *helpers), missing)


def show_tool(spec: ToolSpec, entry: ToolsetTool) -> ToolSpec:
    """Return a tool as its toolset's entry describes it."""
    if not entry.changes_definition:
        return spec
    title, description = entry.title or spec.title, spec.description
    if entry.description is not None:
        description = clean_text(entry.description, _MAX_DESCRIPTION_LENGTH)
    definition = None if spec.definition is None else dict(spec.definition)
    if definition is not None:
        changes = {"title": entry.title, "description": entry.description}
        definition.update({name: text for name, text in changes.items() if text is not None})
        annotations: JsonObject | None = definition.get("annotations")
        if entry.title is not None and annotations:
            definition["annotations"] = annotations | {"title": entry.title}
    return msgspec.structs.replace(
        spec,
        name=entry.name or spec.name,
        title=title,
        description=description,
        definition=definition,
        original_name=spec.identity,
    )


def restore_tool(spec: ToolSpec) -> ToolSpec:
    """Return a shown tool under its original name."""
    if not spec.original_name:
        return spec
    return msgspec.structs.replace(spec, name=spec.original_name, original_name="")


def _find_places(entries: Sequence[ToolsetTool], specs: Sequence[ToolSpec]) -> dict[int, int]:
    """Map numbers of selected tools to the places of their entries."""
    numbers: dict[str, int] = {}
    for number, spec in reversed(tuple(enumerate(specs))):
        numbers.update(dict.fromkeys((*spec.aliases, f"{spec.server}/{spec.tool}"), number))
    numbers.update({spec.name: number for number, spec in enumerate(specs)})
    places: dict[int, int] = {}
    for place, entry in enumerate(entries):
        if not entry.is_glob and (number := numbers.get(entry.tool)) is not None:
            places.setdefault(number, place)
    for place, entry in enumerate(entries):
        if entry.is_glob:
            matches = re.compile(translate(entry.tool)).match
            for number, spec in enumerate(specs):
                if matches(spec.name) or matches(f"{spec.server}/{spec.tool}"):
                    places.setdefault(number, place)
    return places


def _list_sign_ins(
    entries: Sequence[ToolsetTool], specs: Sequence[ToolSpec], selected: Collection[int]
) -> list[ToolSpec]:
    """List the sign-in tools of servers that entries name.

    Before a sign-in, such a server has no other tools.
    """
    servers = {entry.tool.split("/", 1)[0] for entry in entries if "/" in entry.tool}
    return [
        spec
        for number, spec in enumerate(specs)
        if number not in selected
        and spec.helper
        and spec.tool == SIGN_IN
        and any(fnmatchcase(spec.server, server) for server in servers)
    ]
