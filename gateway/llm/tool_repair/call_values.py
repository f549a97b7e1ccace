"""Values of calls: names and arguments in JSON, arguments in tags."""

import json
import re
from collections.abc import Iterator

from gateway.llm.tool_repair.json_repair import is_list, is_object, parse_strict

ARGUMENT_KEYS = ("arguments", "parameters", "args", "kwargs", "params", "input", "tool_input", "action_input", "__arg1")
NAME_KEYS = ("name", "tool", "tool_name", "function", "function_name", "recipient_name", "action")
CALL_KEYS = ("function", "function_call", "tool_call")
_ID_KEYS = ("id", "type", "call_id", "tool_call_id", "index")
_LIST_KEYS = ("tool_calls", "tool_uses", "calls", "function_calls")

_CALL_MEMBERS = {*ARGUMENT_KEYS, *NAME_KEYS, *CALL_KEYS, *_ID_KEYS, *_LIST_KEYS}
_SCHEMA_KEYS = {"type", "properties", "required", "additionalProperties", "$schema", "$defs", "title", "description"}
_PARAMETER = re.compile(
    r"(?:^[ \t]{0,8}|(?<=>))<parameter(?:=|\s{1,4}name=)[\"']?([\w.-]{1,128}+)[\"']?[^>\n]{0,40}>", re.MULTILINE
)
_PARAMETER_END = "</parameter>"
CHILD_TAGS = re.compile(
    r"(?:<(\w[\w.-]{0,127}+)>(?:(?!</\1>|</(?:function|invoke|tool_call)>).)*+</\1>\s*+)++", re.DOTALL
)
_CHILD_TAG = re.compile(r"<(\w[\w.-]{0,127}+)>((?:(?!</\1>).)*+)</\1>\s*+", re.DOTALL)


def list_json_calls(value: object, default: str | None) -> Iterator[tuple[str, str]]:
    """Yield names and argument texts of the calls in a JSON value.

    `default` replaces missing arguments.
    """
    if is_list(value):
        for item in value:
            yield from list_json_calls(item, default)
    if not is_object(value):
        return
    for key in _LIST_KEYS:
        items = value.get(key)
        if is_list(items := parse_strict(items) if isinstance(items, str) else items):
            yield from list_json_calls(items, default)
            return
    for key in CALL_KEYS:
        if is_object(inner := value.get(key)):
            value = {**value, key: None, **inner}
    name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
    arguments: object = next((value[key] or "" for key in ARGUMENT_KEYS if key in value), default)
    if name and (is_object(arguments) or isinstance(arguments, str)) and not is_schema(arguments):
        yield name, arguments if isinstance(arguments, str) else dump_json(arguments)


def read_parameter_tags(text: str) -> str | None:
    """Convert parameter tags to a JSON object.

    None for a text that does not begin with one, or has a truncated one.
    """
    parameters: dict[str, str] = {}
    starts = list(_PARAMETER.finditer(text)) if text.lstrip().startswith("<parameter") else []
    for i, start in enumerate(starts):
        limit = starts[i + 1].start() if i + 1 < len(starts) else len(text)
        end = text.find(_PARAMETER_END, start.end(), limit)
        if end < 0 and limit == len(text):
            return None
        value = text[start.end() : end if end >= 0 else limit]
        parameters[start[1]] = value.removeprefix("\n").removesuffix("\n")
    return dump_json(parameters) if parameters else None


def read_child_tags(text: str) -> str | None:
    """Convert the tags `<KEY>value</KEY>` to a JSON object.

    None for a text that is not only such tags.
    """
    if not CHILD_TAGS.fullmatch(text):
        return None
    tags = list(_CHILD_TAG.finditer(text))
    if len(tags) == 1 and tags[0][1].lower() in ARGUMENT_KEYS and (inner := read_child_tags(tags[0][2].strip())):
        return inner
    return dump_json({tag[1]: tag[2].removeprefix("\n").removesuffix("\n") for tag in tags})


def has_only_call_members(value: object) -> bool:
    """Return whether nothing stands beside the calls in a JSON value."""
    items = value if is_list(value) else [value]
    return all(is_object(item) and item.keys() <= _CALL_MEMBERS for item in items)


def is_schema(arguments: object) -> bool:
    """Return whether arguments are a JSON schema.

    The description of a tool looks like a call of it.
    """
    if not is_object(arguments) or "properties" not in arguments:
        return False
    properties = arguments["properties"]
    is_all_schema = (
        arguments.keys() <= _SCHEMA_KEYS and is_object(properties) and all(map(is_object, properties.values()))
    )
    return arguments.get("type") == "object" or is_all_schema


def dump_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
