"""Globs over URIs of resources, however their servers read them."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import unquote


def permits_uri(uri: str, globs: tuple[str, ...] | None) -> bool:
    """Whether an allow list permits a URI, however its server reads it.

    None permits every URI.
    """
    if globs is None or "*" in globs:
        return True
    if not _matches(uri, globs):
        return False
    others = _list_readings(uri) - {uri}
    return not others or all(_matches(reading, _add_readings(globs)) for reading in others)


def denies_uri(uri: str, globs: tuple[str, ...]) -> bool:
    """Whether a deny list has a URI, in any reading."""
    if not globs:
        return False
    return any(_matches(reading, _add_readings(globs)) for reading in {uri, *_list_readings(uri)})


def _list_readings(uri: str) -> set[str]:
    """The resources that a URI may mean to its server.

    Percent-encodings, letter case of scheme and authority, dot segments, empty segments and backslashes are resolved.
    What looks like an authority is the first segment of a path to some servers.
    """
    scheme, separator, rest = uri.partition(":")
    rest = unquote(rest).replace("\\", "/")
    if not rest.startswith("//"):
        return {f"{scheme.lower()}{separator}{_resolve_path(rest)}"}
    authority, slash, path = rest[2:].partition("/")
    beginning = f"{scheme.lower()}{separator}//"
    return {
        f"{beginning}{authority.lower()}{slash}{_resolve_path(path)}",
        f"{beginning}{slash if not authority else ''}{_resolve_path(rest)}",
    }


def _resolve_path(path: str) -> str:
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    if segments and path.endswith(("/", "/.", "/..")):
        segments.append("")
    return "/".join(segments)


@lru_cache(maxsize=256)
def _add_readings(globs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(reading for glob in globs for reading in (glob, *_list_readings(glob)))


def _matches(uri: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(uri, glob) for glob in globs)
