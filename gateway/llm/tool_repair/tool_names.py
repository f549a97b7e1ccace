"""Which tool a model means by the name that it wrote: one that differs only in how it is written, never a near miss."""

import re
from collections.abc import Collection, Iterator

from gateway.llm.tool_repair.json_repair import Unreadable

_LONGEST = 256

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


def plain(name: str) -> str:
    """A name without case and separators: `maxResults`, `max-results` and `max_results` are one."""
    return _SEPARATORS.sub("", name.strip()).casefold()


def bare(name: str) -> Iterator[str]:
    """The name, then without each of the prefixes that models and their templates put before it."""
    name = _NUMBERED.sub("", name).rstrip("./:")
    yield name
    while len(name) <= _LONGEST and (prefix := _PREFIX.match(name)) and prefix.end() < len(name):
        name = name[prefix.end() :]
        yield name


def means(name: str, tool: str) -> bool:
    """Whether a name can be this tool's."""
    return any(plain(one) == plain(tool) for one in bare(name))


def resolve(name: str, names: Collection[str]) -> tuple[str, str]:
    """The tool that a name means, and the arguments that were glued to it, if any.

    Raises:
        Unreadable: it means none, or could mean several.
    """
    if name in names:
        return name, ""
    recipient = _RECIPIENT.search(name[:_LONGEST])
    written = None if recipient else _WRITTEN.match(name)
    rest = written["rest"] if written else ""
    said = recipient[1] if recipient else written["name"] if written and rest[:1] in ("", "{", "(") else ""
    for candidate in (name, *bare(said)):
        short = plain(candidate)
        meant = [candidate] if candidate in names else [one for one in names if plain(one) == short]
        if len(meant) == 1:
            return meant[0], rest if candidate != name else ""
        if meant:
            raise Unreadable(f"The name {name[:80]!r} could mean any of these tools: {', '.join(sorted(meant))}.")
    offered = ", ".join(sorted(names)) or "none"
    raise Unreadable(f"There is no tool named {name[:80]!r}. The tools on offer: {offered}.")
