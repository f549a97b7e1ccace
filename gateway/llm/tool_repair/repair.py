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
from gateway.llm.tool_repair.coercion import Fitter
from gateway.llm.tool_repair.extraction import INNER, NAMES, PAYLOADS, find
from gateway.llm.tool_repair.json_repair import Unreadable, called, is_list, is_object, read, whole_characters
from gateway.llm.tool_repair.tool_names import means, plain, resolve


class Repaired(msgspec.Struct, frozen=True):
    """A call that can be made. `arguments` is a JSON object that fits the schema; `how`: what was mended, if anything.

    A schema that is not valid itself is not held against a call.
    """

    name: str
    arguments: JsonObject
    how: tuple[str, ...] = ()


class Unrepairable(msgspec.Struct, frozen=True):
    """What is wrong, in words that let a model do better: the tool, the field, what was given, what is expected."""

    problem: str


_MOST_WRAPPED = 8
_NONE: JsonObject = {}
_AROUND = {*NAMES, "id", "type", "call_id"}
_NO_NAMES = {"json", "commentary", "assistant", "function", "functions", "tool", "tools", "toolcall", "tooluse", "call"}
_AGAIN = re.compile(r"\s*(?:\{|\[\s*\{|\"\s*\{|```|\w+\s*=(?!=))")


def repair(name: str, arguments: str, schemas: Mapping[str, JsonObject]) -> Repaired | Unrepairable:
    """The call that was meant. `schemas` are the inputs' JSON schemas by the names of the tools on offer."""
    name, arguments = whole_characters(name), whole_characters(arguments)
    try:
        tool, glued = resolve(name, schemas)
    except Unreadable as error:
        return _inner(name, arguments, schemas) or Unrepairable(str(error))
    how = [] if tool == name else ["the name"]
    fitter = Fitter(schemas[tool])
    try:
        value = _object(_only(glued, arguments), tool, fitter, how)
    except Unreadable as error:
        return Unrepairable(f"The arguments of {tool} cannot be read: {error}. It takes: {fitter.signature}.")
    fitted = fitter.fit(value)
    if problems := fitter.problems(fitted):
        return Unrepairable(f"The arguments of {tool} do not fit: {'; '.join(problems)}. It takes: {fitter.signature}.")
    return Repaired(tool, fitted, tuple(dict.fromkeys(how + fitter.how)))


def calls_in(text: str, names: Collection[str]) -> list[ToolCall]:
    """The calls that a text holds, arguments as written: a `failed_generation`, or what a model without calls wrote.

    `names` are the tools on offer: without markup, only what names one of them is a call. The ids depend on the text
    alone.
    """
    calls: list[ToolCall] = []
    for call in find(whole_characters(text), names):
        digest = sha256(f"{len(calls)}\0{call.name}\0{call.arguments}".encode())
        calls.append(ToolCall(f"call_{digest.hexdigest()[:8]}", call.name, call.arguments))
    return calls


def tools_prompt(specs: Sequence[ToolSpec]) -> str:
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


def _inner(name: str, arguments: str, schemas: Mapping[str, JsonObject]) -> Repaired | Unrepairable | None:
    """gpt-oss calls a tool named `json` whose arguments are the call that it meant."""
    calls = calls_in(arguments, schemas) if plain(name) in _NO_NAMES else []
    if len(calls) != 1 or plain(calls[0].name) in _NO_NAMES:
        return None
    return repair(calls[0].name, calls[0].arguments, schemas)


def _only(glued: str, arguments: str) -> str:
    """The text of the arguments: a model that glues them to the name leaves their own place empty."""
    if glued and arguments.strip() not in ("", "{}", "null", glued.strip()):
        raise Unreadable("they were given twice, in the name and beside it")
    return glued or arguments


def _object(text: str, tool: str, fitter: Fitter, how: list[str]) -> JsonObject:
    """The object of arguments in a text and in whatever was put around it.

    Raises:
        Unreadable: there is none in it, or it is another tool's.
    """
    if (other := called(text)) and not means(other, tool):
        raise Unreadable(f"they are a call of {other[:80]}")
    value = read(text, how)
    for _ in range(_MOST_WRAPPED):
        inner = _unwrapped(value, tool, fitter, how)
        if inner is value:
            break
        how.append("what was put around the arguments")
        value = inner
    if is_object(value):
        return value
    required = fitter.required
    several = is_list(value) and any(is_object(item) for item in value)
    if len(required) != 1 or several or isinstance(value, bool):
        raise Unreadable(f"one JSON object is expected, {msgspec.json.encode(value).decode()[:200]} was given")
    how.append("a value in place of an object")
    return {required[0]: value}


def _unwrapped(value: Any, tool: str, fitter: Fitter, how: list[str]) -> Any:
    """The value without its outermost wrapping; the very same if it has none."""
    if isinstance(value, str):
        again = _AGAIN.match(value) or ((name := called(value)) and means(name, tool))
        return read(value, how) if again else value or _NONE
    if is_list(value):
        return value if len(value) > 1 or (value and not is_object(value[0])) else value[0] if value else _NONE
    if not is_object(value) or fitter.properties is None:
        return value
    name = next((value[key] for key in value if key.lower() in NAMES and isinstance(value[key], str)), None)
    if fitter.properties.keys() & value.keys() and not (name and means(name, tool)):
        return value
    for key, inner in value.items():
        around = {other.lower() for other in value if other != key} - _AROUND
        if around or key in fitter.properties or not (is_object(inner) or isinstance(inner, str)):
            continue
        if key.lower() in PAYLOADS:
            if name and not means(name, tool):
                raise Unreadable(f"they are a call of {name[:80]}")
            return inner
        if is_object(inner) and (key.lower() in INNER or means(key, tool)):
            return inner
    return value
