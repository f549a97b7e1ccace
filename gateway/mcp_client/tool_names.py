"""Unique and stable names of tools and prompts that Groq accepts."""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from gateway.ports.servers import ServerConfig

_MAX_NAME_LENGTH = 64
_HASH_LENGTH = 6
_INVALID_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")
GATEWAY_TOOLS = frozenset({"ask_agent", "batch", "find_tools", "run_python"})
"""Names of the gateway's own tools."""
_MAX_CACHED_NAMES = 20_000


@lru_cache(_MAX_CACHED_NAMES)
def make_exposed_name(prefix: str, server: str, tool: str, distinct: bool = False) -> str:
    """Return prefix and tool name in at most 64 valid characters.

    It ends with a hash if it had to be changed, or must be `distinct` from an equal name.
    """
    full_name = f"{prefix}_{tool}" if prefix else tool
    name = _INVALID_CHARACTER.sub("_", full_name)
    if name == full_name and len(name) <= _MAX_NAME_LENGTH and not distinct:
        return name
    return _append(name, _hash(f"{server}\0{tool}"))


class ExposedNames:
    """Names of all servers' tools and prompts.

    A name depends on the configured servers and their order alone, so that it leads to the same server while others are
    away. The prefix of a server reserves all names that begin with it. A later server marks such names with a hash of
    its own name: of the servers "a" and "a_b", the first one has the tool "a_b_c", the second one "a_b_c_0a1b2c". A
    server without a prefix counts as the last one, since its names could begin with anything.
    """

    def __init__(self, servers: Sequence[ServerConfig]) -> None:
        regions = {server.name: _get_region(server) for server in servers}
        ranked = sorted(regions, key=lambda name: not regions[name])
        self._regions = regions
        self._foreign_regions = {
            name: tuple(region for other, region in regions.items() if other != name) for name in regions
        }
        self._reserved = {name: _list_overlapping(regions, ranked[:rank], name) for rank, name in enumerate(ranked)}
        self._marks = {name: f"_{_hash(name)}" for name in regions}
        self._foreign_marks = {
            name: tuple(mark for mark in self._marks.values() if mark != self._marks[name]) for name in regions
        }

    def get_name(self, server: ServerConfig, item: str, *, distinct: bool = False) -> str:
        """Return the name of a server's tool or prompt.

        It is `distinct` from an equal name of the same server.
        """
        name = make_exposed_name(_get_prefix(server), server.name, item, distinct)
        if not self._must_be_marked(server.name, name):
            return name
        full_name = _INVALID_CHARACTER.sub("_", f"{_get_prefix(server)}_{item}" if _get_prefix(server) else item)
        mark = self._marks[server.name]
        is_short = len(full_name) + len(mark) <= _MAX_NAME_LENGTH
        return f"{full_name}{mark}" if name == full_name and is_short else _append(full_name, f"{_hash(item)}{mark}")

    def get_former_names(self, server: ServerConfig, item: str) -> tuple[str, str]:
        """Return the names of release 0.1.0: alone, and beside an equal name."""
        prefix = _get_prefix(server)
        return make_exposed_name(prefix, server.name, item), make_exposed_name(prefix, server.name, item, True)

    def list_rivals(self, server: ServerConfig, name: str) -> list[str]:
        """Other servers whose names may begin like this one."""
        if not name.startswith(self._foreign_regions[server.name]):  # one call, as nearly no name has a rival
            return []
        return [other for other, region in self._regions.items() if other != server.name and name.startswith(region)]

    def _must_be_marked(self, server: str, name: str) -> bool:
        is_reserved = name in GATEWAY_TOOLS or any(name.startswith(region) for region in self._reserved[server])
        return is_reserved or name.endswith(self._foreign_marks[server])


def _get_prefix(server: ServerConfig) -> str:
    return server.name if server.prefix is None else server.prefix


def _get_region(server: ServerConfig) -> str:
    """Common beginning of all names of a server."""
    prefix = _get_prefix(server)
    return _INVALID_CHARACTER.sub("_", f"{prefix}_")[: _MAX_NAME_LENGTH - 2 * _HASH_LENGTH - 2] if prefix else ""


def _list_overlapping(regions: dict[str, str], others: Sequence[str], server: str) -> list[str]:
    own = regions[server]
    return [regions[other] for other in others if own.startswith(regions[other]) or regions[other].startswith(own)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_LENGTH]


def _append(name: str, ending: str) -> str:
    return f"{name[: _MAX_NAME_LENGTH - 1 - len(ending)]}_{ending}"
