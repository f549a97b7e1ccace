"""Which tool a model means by the name that it wrote: one that differs only in how it is written, never a near miss."""

import re
from collections.abc import Collection, Iterator

from gateway.llm.tool_repair.json_repair import JsonRepairError

_MAX_NAME_LENGTH = 256

_SEPARATORS = re.compile(r"(?<=[^\W_])[\s_.-]+(?=[^\W\d_])|(?<=[^\W\d_])[\s_.-]+(?=[^\W_])")
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")
_WRITTEN = re.compile(
    r"[\s\"'`<=]*+(?:function[=/(])?(?P<name>[\w./:-]{1,256}+)"
    r"(?:\[ARGS\]|<\|[^|<>]{0,40}\|?>|\b(?:json|commentary|analysis|final|assistant|code)\b|[\s=>,:)\]\"'`])*+"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_NUMBERED = re.compile(r":\d+$")
_PREFIX = re.compile(
    r"(?:functions?|tools?|default_api|api|namespace|assistant|commentary|multi_tool_use)(?:[.:/]|__)"
    r"|mcp(?:__|[.:/])[^.:/]+?(?:__|[.:/])",
    re.IGNORECASE,
)


def normalize_name(name: str) -> str:
    """A name without case and separators: `maxResults`, `max-results` and `max_results` are one."""
    return _SEPARATORS.sub("", name.strip()).casefold()


def strip_prefixes(name: str) -> Iterator[str]:
    """The name, then without each of the prefixes that models and their templates put before it."""
    name = _NUMBERED.sub("", name).rstrip("./:")
    yield name
    while len(name) <= _MAX_NAME_LENGTH and (prefix := _PREFIX.match(name)) and prefix.end() < len(name):
        name = name[prefix.end() :]
        yield name


def matches_tool(name: str, tool: str) -> bool:
    """Whether a name can be this tool's."""
    return any(normalize_name(one) == normalize_name(tool) for one in strip_prefixes(name))


def resolve_tool_name(name: str, names: Collection[str]) -> tuple[str, str]:
    """The tool that a name means, and the arguments that were glued to it, if any.

    Raises:
        Unreadable: it means none, or could mean several.
    """
    if name in names:
        return name, ""
    recipient = _RECIPIENT.search(name[:_MAX_NAME_LENGTH])
    written = None if recipient else _WRITTEN.match(name)
    rest = written["rest"] if written else ""
    said = recipient[1] if recipient else written["name"] if written and rest[:1] in ("", "{", "(") else ""
    for candidate in (name, *strip_prefixes(said)):
        short = normalize_name(candidate)
        meant = [candidate] if candidate in names else [one for one in names if normalize_name(one) == short]
        if len(meant) == 1:
            return meant[0], rest if candidate != name else ""
        if meant:
            raise JsonRepairError(f"The name {name[:80]!r} could mean any of these tools: {', '.join(sorted(meant))}.")
    offered = ", ".join(sorted(names)) or "none"
    raise JsonRepairError(f"There is no tool named {name[:80]!r}. The tools on offer: {offered}.")
