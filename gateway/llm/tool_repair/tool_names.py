"""Matches the names that models write to tools.

Only the spelling may differ; similar names do not match.
"""

import re
from collections.abc import Collection, Iterator
from itertools import chain

from gateway.llm.tool_repair.json_repair import JsonRepairError

_MAX_NAME_LENGTH = 256

_SEPARATORS = re.compile(r"(?<=[^\W_])[\s_.-]+(?=[^\W\d_])|(?<=[^\W\d_])[\s_.-]+(?=[^\W_])")
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")
_NAME_AND_REST = re.compile(
    r"(?:<\|?tool_calls?\|?>|\[TOOL_CALLS?\]|(?:function\s?)?<[|\uff5c]tool[_\u2581]sep[|\uff5c]>|call:(?=[A-Za-z_]))?"
    r"[\s\"'`<=*]*+(?:function[=/(])?(?P<name>[\w./:-]{1,256}+)"
    r"(?:\[CALL_ID\][\w-]{1,64}|\[ARGS\]|\(\)|<\|[^|<>]{0,40}\|?>|</[\w|:]{1,40}>|\b(?:json|commentary|analysis|final|assistant|code)\b|[\s=>,:)\]\"'`*])*+"
    r"(?P<rest>.*)",
    re.DOTALL,
)
_PARALLEL_WRAPPERS = {"multitooluseparallel", "multitooluse", "parallel", "functionsmultitooluseparallel"}
_WORD_SUFFIX = re.compile(r"(?:commentary|json|analysis|final|code|assistant)$")
_NUMBER_SUFFIX = re.compile(r":\d+$")
_PREFIX = re.compile(
    r"(?:functions?|tools?|default_api|api|namespace|assistant|commentary|multi_tool_use)(?:\s?[.:/]\s?|__)"
    r"|functions_"
    r"|mcp(?:__|[.:/])[^.:/]+?(?:__|[.:/])",
    re.IGNORECASE,
)


def normalize_name(name: str) -> str:
    """Remove case and separators: `maxResults`, `max-results` and `max_results` are equal."""
    return _SEPARATORS.sub("", name.strip()).casefold()


def is_parallel_wrapper(name: str) -> bool:
    """Return whether a name is that of OpenAI's wrapper around several calls."""
    return normalize_name(name.partition("<|")[0]) in _PARALLEL_WRAPPERS


def strip_prefixes(name: str) -> Iterator[str]:
    """Yield the name, then the name without each prefix.

    Models add such prefixes.
    """
    name = _NUMBER_SUFFIX.sub("", name).rstrip("./:")
    yield name
    while len(name) <= _MAX_NAME_LENGTH and (prefix := _PREFIX.match(name)) and prefix.end() < len(name):
        name = name[prefix.end() :]
        yield name


def matches_tool(name: str, tool: str) -> bool:
    """Return whether a name can mean this tool."""
    return any(normalize_name(candidate) == normalize_name(tool) for candidate in strip_prefixes(name))


def resolve_tool_name(name: str, names: Collection[str]) -> tuple[str, str]:
    """Return the tool that a name means, and following arguments.

    Models may write arguments after the name.

    Raises:
        JsonRepairError: the name matches no tool, or several.
    """
    if name in names:
        return name, ""
    recipient = _RECIPIENT.search(name[:_MAX_NAME_LENGTH])
    match = None if recipient else _NAME_AND_REST.match(name)
    suffix = match["rest"] if match else ""
    bare_name = recipient[1] if recipient else match["name"] if match and suffix[:1] in ("", "{", "(") else ""
    candidates = (strip_prefixes(text) for text in (bare_name, _WORD_SUFFIX.sub("", bare_name), name))
    for candidate in (name, *chain.from_iterable(candidates)):
        normalized_name = normalize_name(candidate)
        tools = (
            [candidate] if candidate in names else [tool for tool in names if normalize_name(tool) == normalized_name]
        )
        if len(tools) == 1:
            return tools[0], suffix if candidate != name else ""
        if tools:
            raise JsonRepairError(f"The name {name[:80]!r} could mean any of these tools: {', '.join(sorted(tools))}.")
    available = ", ".join(sorted(names)) or "none"
    raise JsonRepairError(f"There is no tool named {name[:80]!r}. Available tools: {available}.")
