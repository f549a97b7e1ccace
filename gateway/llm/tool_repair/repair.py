"""Repairs invalid tool calls, and extracts calls from models' text.

A call is repaired only if its meaning is unambiguous: no value is invented, and a truncated call is not run. Only
defaults of the schema are filled in, where they are required. For other calls the model gets an error message.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

import msgspec

from gateway.common.schema_defaults import fill_required_defaults
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, ToolCall, ToolSpec
from gateway.llm.stream import check_call_count
from gateway.llm.tool_repair.call_values import (
    ARGUMENT_KEYS,
    CALL_KEYS,
    NAME_KEYS,
    list_json_calls,
    read_child_tags,
    read_parameter_tags,
)
from gateway.llm.tool_repair.coercion import MAX_OPERATIONS, SchemaCoercer
from gateway.llm.tool_repair.extraction import CallPlace, find_calls
from gateway.llm.tool_repair.json_repair import (
    JsonRepairError,
    get_called_name,
    is_list,
    is_object,
    join_surrogates,
    parse_lenient,
    parse_strict,
)
from gateway.llm.tool_repair.markup import normalize_markup
from gateway.llm.tool_repair.tool_names import is_parallel_wrapper, matches_tool, normalize_name, resolve_tool_name
from gateway_runtime.json_schema.validation import OperationBudget


class RepairedCall(msgspec.Struct, frozen=True):
    """A call that can be run.

    Its arguments match the tool's schema. `repairs` describes what was changed, if anything. An invalid schema accepts
    all arguments.
    """

    name: str
    arguments: JsonObject
    repairs: tuple[str, ...] = ()


class UnrepairableCall(msgspec.Struct, frozen=True):
    """A call that cannot be repaired.

    `problem` tells the model the tool, the field and what is expected.
    """

    problem: str


_MAX_WRAPPERS = 8
_NO_ARGUMENTS: JsonObject = {}
_WRAPPER_KEYS = {*NAME_KEYS, "id", "type", "call_id"}
_GENERIC_NAMES = {
    "",
    "json",
    "commentary",
    "assistant",
    "function",
    "functions",
    "tool",
    "tools",
    "toolcall",
    "tooluse",
    "usemcptool",
    "call",
}
_TAG_END = re.compile(r"</[\w:.-]{1,60}>")
_KEY_WITHOUT_START = re.compile(r"\s*[\w.-]{1,128}\s*</arg_key>")
_ENCODED_JSON = re.compile(r"\s*(?:\{|\[\s*\{|\"\s*\{|```|\w+\s*=(?!=))")


def repair_call(
    name: str, arguments: str, schemas: Mapping[str, JsonObject], budget: OperationBudget | None = None
) -> RepairedCall | UnrepairableCall:
    """Repair a call.

    `schemas`: the input schemas of the available tools by name. `budget`: the operations left to the calls of the same
    answer; a call for which they do not suffice is not checked.
    """
    name, arguments = join_surrogates(name), join_surrogates(arguments)
    try:
        tool, appended_text = resolve_tool_name(name, schemas)
    except JsonRepairError as error:
        return _repair_nested_call(name, arguments, schemas, budget) or UnrepairableCall(str(error))
    repairs = [] if tool == name else ["the name"]
    coercer = SchemaCoercer(schemas[tool], budget)
    try:
        value = _parse_arguments(_choose_arguments(appended_text, arguments), tool, coercer, repairs)
    except JsonRepairError as error:
        return UnrepairableCall(f"The arguments of {tool} cannot be read: {error}. Expected: {coercer.signature}.")
    coerced_arguments = coercer.coerce_arguments(value)
    complete_arguments = fill_required_defaults(schemas[tool], coerced_arguments)
    if complete_arguments is not coerced_arguments:
        repairs.append("a required default")
        coerced_arguments = complete_arguments
    if problems := coercer.find_problems(coerced_arguments):
        return UnrepairableCall(
            f"The arguments of {tool} are invalid: {'; '.join(problems)}. Expected: {coercer.signature}."
        )
    return RepairedCall(tool, coerced_arguments, tuple(dict.fromkeys(repairs + coercer.repairs)))


def repair_calls(
    call: ToolCall, schemas: Mapping[str, JsonObject], budget: OperationBudget | None = None
) -> list[tuple[ToolCall, RepairedCall | UnrepairableCall]]:
    """Repair a call, or the calls in OpenAI's wrapper around several.

    A wrapper that was cut has no calls. Return each call as written with its repair. The calls share the `budget`.

    Raises:
        ModelAnswerTooLong: there are too many calls.
    """
    budget = budget or OperationBudget(MAX_OPERATIONS)
    if call.problem or call.name in schemas or not is_parallel_wrapper(call.name):
        return [(call, repair_call(call.name, call.arguments, schemas, budget))]
    try:
        value = parse_lenient(join_surrogates(call.arguments), [])
        found = list(list_json_calls(parse_lenient(value, []) if isinstance(value, str) else value, ""))
    except JsonRepairError as error:
        return [(call, UnrepairableCall(f"The calls in {call.name[:80]} cannot be read: {error}."))]
    check_call_count(len(found))
    calls = [ToolCall(_derive_id(call.id, number), *parts) for number, parts in enumerate(found)]
    calls[:1] = [msgspec.structs.replace(first, extra_content=call.extra_content) for first in calls[:1]]
    return [(inner, repair_call(inner.name, inner.arguments, schemas, budget)) for inner in calls] or [
        (call, repair_call(call.name, call.arguments, schemas, budget))
    ]


def choose_arguments_text(written: str, repaired: RepairedCall) -> str:
    """Return the text of the arguments that run.

    It is the written one if that is strict JSON of the repaired ones; otherwise, these are encoded.
    """
    written, encoded = join_surrogates(written), msgspec.json.encode(repaired.arguments)
    try:
        is_equal = msgspec.json.encode(msgspec.json.decode(written)) == encoded
    except JSON_DECODE_ERRORS:
        is_equal = False
    return written if is_equal else encoded.decode()


def extract_calls(text: str, names: Collection[str], *, place: CallPlace = "anywhere") -> list[ToolCall]:
    """Extract the calls in a text, with their arguments as written.

    The text is a server's `failed_generation`, or the output of a model. `names`: the available tools; without markup,
    only their names count as calls. `place`: where the calls must stand for any of them to count. The ids of the calls
    depend on the text alone.
    """
    calls: list[ToolCall] = []
    for call in find_calls(join_surrogates(text), names, place=place):
        digest = sha256(f"{len(calls)}\0{call.name}\0{call.arguments}".encode())
        calls.append(ToolCall(f"call_{digest.hexdigest()[:8]}", call.name, call.arguments))
    return calls


def write_tools_prompt(specs: Sequence[ToolSpec]) -> str:
    """Write the instructions for a model without native calls.

    Equal tools give equal text, for the prompt cache.
    """
    if not specs:
        return ""
    tools = [{"name": spec.name, "description": spec.description, "parameters": spec.input_schema} for spec in specs]
    tool_lines = "\n".join(msgspec.json.encode(tool, order="deterministic").decode() for tool in tools)
    return (
        "# Tools\n\n"
        "You can use these tools, one a line, each with the JSON schema of its parameters:\n\n"
        f"{tool_lines}\n\n"
        "To use tools, end your answer with one block in exactly this form, valid JSON inside, and write nothing after "
        "it:\n\n"
        '<TOOL_CALLS>[{"name": "tool name", "arguments": {"parameter": "value"}}]</TOOL_CALLS>\n\n'
        "List several calls in the same block. The results come in the next message: never make them up. If no tool is "
        "needed, answer without a block."
    )


def _repair_nested_call(
    name: str, arguments: str, schemas: Mapping[str, JsonObject], budget: OperationBudget | None
) -> RepairedCall | UnrepairableCall | None:
    """Repair a call of a tool named `json`.

    Its arguments are the actual call, as gpt-oss makes them.
    """
    if "<" in name and arguments.strip() in ("", "{}", "null"):
        calls = extract_calls(f"<tool_call>{name}", schemas)  # the name has the arguments in tags
    else:
        calls = extract_calls(arguments, schemas) if normalize_name(name) in _GENERIC_NAMES else []
    if len(calls) != 1 or normalize_name(calls[0].name) in _GENERIC_NAMES:
        return None
    return repair_call(calls[0].name, calls[0].arguments, schemas, budget)


def _derive_id(call_id: str, number: int) -> str:
    return call_id if number == 0 else f"call_{sha256(f'{call_id} {number}'.encode()).hexdigest()[:8]}"


def _choose_arguments(appended_text: str, arguments: str) -> str:
    """Return the text of the arguments.

    A model may have appended them to the name.
    """
    if appended_text and arguments.strip() not in ("", "{}", "null", appended_text.strip()):
        raise JsonRepairError("they were given twice, in the name and in the arguments")
    return appended_text or arguments


def _parse_arguments(text: str, tool: str, coercer: SchemaCoercer, repairs: list[str]) -> JsonObject:
    """Parse a text to the object of arguments, without wrappers.

    Raises:
        JsonRepairError: the text has no such object, or it belongs to another tool.
    """
    called_name = get_called_name(text)
    if called_name and called_name != "dict" and not matches_tool(called_name, tool):
        raise JsonRepairError(f"they are a call of {called_name[:80]}")
    if "<" in text and parse_strict(text) is None and (tags := _read_tags(text, coercer.properties or ())):
        repairs.append("tags in place of JSON")
        text = tags
    value = parse_lenient(text, repairs)
    if isinstance(value, str) and (text.lstrip().startswith("<") or (value == text.strip() and _TAG_END.search(text))):
        raise JsonRepairError("their tags are not those of the parameters")
    for _ in range(_MAX_WRAPPERS):
        inner = _unwrap_value(value, tool, coercer, repairs)
        if inner is value:
            break
        repairs.append("a wrapper around the arguments")
        value = inner
    if is_object(value):
        return value
    required_names = coercer.required
    has_objects = is_list(value) and any(is_object(item) for item in value)
    if len(required_names) != 1 or has_objects or isinstance(value, bool):
        raise JsonRepairError(f"one JSON object is expected, not {msgspec.json.encode(value).decode()[:200]}")
    repairs.append("a value in place of an object")
    return {required_names[0]: value}


def _read_tags(text: str, properties: Collection[str]) -> str | None:
    """Convert arguments in tags to a JSON object.

    The tags are those of a model family, or named like the parameters.
    """
    if _KEY_WITHOUT_START.match(text):
        text = f"<arg_key>{text.lstrip()}"
    if tags := read_parameter_tags(normalize_markup(text)):
        return tags
    children = read_child_tags(text.strip())
    return children if children and msgspec.json.decode(children, type=JsonObject).keys() <= set(properties) else None


def _unwrap_value(value: object, tool: str, coercer: SchemaCoercer, repairs: list[str]) -> object:
    """Remove the outermost wrapper of a value.

    Return the same object if it has none.
    """
    if isinstance(value, str):
        is_encoded = _ENCODED_JSON.match(value) or ((name := get_called_name(value)) and matches_tool(name, tool))
        return parse_lenient(value, repairs) if is_encoded else value or _NO_ARGUMENTS
    if is_list(value):
        return value if len(value) > 1 or (value and not is_object(value[0])) else value[0] if value else _NO_ARGUMENTS
    if not is_object(value) or coercer.properties is None:
        return value
    name = next((value[key] for key in value if key.lower() in NAME_KEYS and isinstance(value[key], str)), None)
    if coercer.properties.keys() & value.keys() and not (name and matches_tool(name, tool)):
        return value
    unusual_keys = [key for key in value if key.lower() not in _WRAPPER_KEYS]
    if len(unusual_keys) > 1:
        return value
    for key, inner in value.items():
        is_alone = unusual_keys in ([], [key])
        if not is_alone or key in coercer.properties or not (is_object(inner) or isinstance(inner, str)):
            continue
        if key.lower() in ARGUMENT_KEYS:
            if name and not matches_tool(name, tool):
                raise JsonRepairError(f"they are a call of {name[:80]}")
            return inner
        if is_object(inner) and (key.lower() in CALL_KEYS or matches_tool(key, tool)):
            return inner
    return value
