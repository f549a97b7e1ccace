"""Mends the tool calls that models write wrongly, and finds the ones that they write into their text.

A call runs only if it is plain what was meant: nothing is invented, nothing that was cut is run. All else is told to
the model, which is asked again.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from gateway.domain.messages import JsonObject, ToolCall, ToolSpec
from gateway.llm.tool_repair.coercion import SchemaCoercer
from gateway.llm.tool_repair.extraction import ARGUMENT_KEYS, CALL_KEYS, NAME_KEYS, find_calls
from gateway.llm.tool_repair.json_repair import (
    JsonRepairError,
    get_called_name,
    is_list,
    is_object,
    join_surrogates,
    parse_lenient,
)
from gateway.llm.tool_repair.tool_names import matches_tool, normalize_name, resolve_tool_name


class RepairedCall(msgspec.Struct, frozen=True):
    """A call that can be made. `arguments` is a JSON object that fits the schema; `how`: what was mended, if anything.

    A schema that is not valid itself is not held against a call.
    """

    name: str
    arguments: JsonObject
    repairs: tuple[str, ...] = ()


class UnrepairableCall(msgspec.Struct, frozen=True):
    """What is wrong, in words that let a model do better: the tool, the field, what was given, what is expected."""

    problem: str


_MAX_WRAPPERS = 8
_NO_ARGUMENTS: JsonObject = {}
_WRAPPER_KEYS = {*NAME_KEYS, "id", "type", "call_id"}
_GENERIC_NAMES = {
    "json",
    "commentary",
    "assistant",
    "function",
    "functions",
    "tool",
    "tools",
    "toolcall",
    "tooluse",
    "call",
}
_ENCODED_JSON = re.compile(r"\s*(?:\{|\[\s*\{|\"\s*\{|```|\w+\s*=(?!=))")


def repair_call(name: str, arguments: str, schemas: Mapping[str, JsonObject]) -> RepairedCall | UnrepairableCall:
    """The call that was meant. `schemas` are the inputs' JSON schemas by the names of the tools on offer."""
    name, arguments = join_surrogates(name), join_surrogates(arguments)
    try:
        tool, glued = resolve_tool_name(name, schemas)
    except JsonRepairError as error:
        return _repair_nested_call(name, arguments, schemas) or UnrepairableCall(str(error))
    how = [] if tool == name else ["the name"]
    fitter = SchemaCoercer(schemas[tool])
    try:
        value = _parse_arguments(_choose_arguments(glued, arguments), tool, fitter, how)
    except JsonRepairError as error:
        return UnrepairableCall(f"The arguments of {tool} cannot be read: {error}. It takes: {fitter.signature}.")
    fitted = fitter.coerce_arguments(value)
    if problems := fitter.find_problems(fitted):
        return UnrepairableCall(
            f"The arguments of {tool} do not fit: {'; '.join(problems)}. It takes: {fitter.signature}."
        )
    return RepairedCall(tool, fitted, tuple(dict.fromkeys(how + fitter.repairs)))


def extract_calls(text: str, names: Collection[str]) -> list[ToolCall]:
    """The calls that a text holds, arguments as written: a `failed_generation`, or what a model without calls wrote.

    `names` are the tools on offer: without markup, only what names one of them is a call. The ids depend on the text
    alone.
    """
    calls: list[ToolCall] = []
    for call in find_calls(join_surrogates(text), names):
        digest = sha256(f"{len(calls)}\0{call.name}\0{call.arguments}".encode())
        calls.append(ToolCall(f"call_{digest.hexdigest()[:8]}", call.name, call.arguments))
    return calls


def write_tools_prompt(specs: Sequence[ToolSpec]) -> str:
    """What to tell a model that cannot call functions. The same tools give the same text, for the prompt cache."""
    if not specs:
        return ""
    tools = [{"name": spec.name, "description": spec.description, "parameters": spec.input_schema} for spec in specs]
    listed = "\n".join(msgspec.json.encode(tool, order="deterministic").decode() for tool in tools)
    return (
        "# Tools\n\n"
        "You can use these tools, one a line, each with the JSON schema of its parameters:\n\n"
        f"{listed}\n\n"
        "To use tools, end your answer with one block in exactly this form, valid JSON inside, and write nothing after "
        "it:\n\n"
        '<TOOL_CALLS>[{"name": "tool name", "arguments": {"parameter": "value"}}]</TOOL_CALLS>\n\n'
        "List several calls in the same block. The results come in the next message: never make them up. If no tool is "
        "needed, answer without a block."
    )


def _repair_nested_call(
    name: str, arguments: str, schemas: Mapping[str, JsonObject]
) -> RepairedCall | UnrepairableCall | None:
    """gpt-oss calls a tool named `json` whose arguments are the call that it meant."""
    calls = extract_calls(arguments, schemas) if normalize_name(name) in _GENERIC_NAMES else []
    if len(calls) != 1 or normalize_name(calls[0].name) in _GENERIC_NAMES:
        return None
    return repair_call(calls[0].name, calls[0].arguments, schemas)


def _choose_arguments(glued: str, arguments: str) -> str:
    """The text of the arguments: a model that glues them to the name leaves their own place empty."""
    if glued and arguments.strip() not in ("", "{}", "null", glued.strip()):
        raise JsonRepairError("they were given twice, in the name and beside it")
    return glued or arguments


def _parse_arguments(text: str, tool: str, fitter: SchemaCoercer, how: list[str]) -> JsonObject:
    """The object of arguments in a text and in whatever was put around it.

    Raises:
        Unreadable: there is none in it, or it is another tool's.
    """
    if (other := get_called_name(text)) and not matches_tool(other, tool):
        raise JsonRepairError(f"they are a call of {other[:80]}")
    value = parse_lenient(text, how)
    for _ in range(_MAX_WRAPPERS):
        inner = _unwrap_value(value, tool, fitter, how)
        if inner is value:
            break
        how.append("what was put around the arguments")
        value = inner
    if is_object(value):
        return value
    required = fitter.required
    several = is_list(value) and any(is_object(item) for item in value)
    if len(required) != 1 or several or isinstance(value, bool):
        raise JsonRepairError(f"one JSON object is expected, {msgspec.json.encode(value).decode()[:200]} was given")
    how.append("a value in place of an object")
    return {required[0]: value}


def _unwrap_value(value: Any, tool: str, fitter: SchemaCoercer, how: list[str]) -> Any:
    """The value without its outermost wrapping; the very same if it has none."""
    if isinstance(value, str):
        again = _ENCODED_JSON.match(value) or ((name := get_called_name(value)) and matches_tool(name, tool))
        return parse_lenient(value, how) if again else value or _NO_ARGUMENTS
    if is_list(value):
        return value if len(value) > 1 or (value and not is_object(value[0])) else value[0] if value else _NO_ARGUMENTS
    if not is_object(value) or fitter.properties is None:
        return value
    name = next((value[key] for key in value if key.lower() in NAME_KEYS and isinstance(value[key], str)), None)
    if fitter.properties.keys() & value.keys() and not (name and matches_tool(name, tool)):
        return value
    for key, inner in value.items():
        around = {other.lower() for other in value if other != key} - _WRAPPER_KEYS
        if around or key in fitter.properties or not (is_object(inner) or isinstance(inner, str)):
            continue
        if key.lower() in ARGUMENT_KEYS:
            if name and not matches_tool(name, tool):
                raise JsonRepairError(f"they are a call of {name[:80]}")
            return inner
        if is_object(inner) and (key.lower() in CALL_KEYS or matches_tool(key, tool)):
            return inner
    return value
