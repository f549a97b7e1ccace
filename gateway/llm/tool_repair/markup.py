"""Rewrites the markup of model families.

The result has the few forms that `extraction.py` reads.

Each rewrite is linear in the length of the text.
"""

import re
from collections.abc import Collection

from gateway.llm.tool_repair.tool_names import normalize_name

_NAME = r"[A-Za-z_][\w./-]{0,127}+"

_SIGNS = re.compile(
    r"<|>>>|call:|\u273fFUNCTION\u273f|\bAction\b|\[TOOL_REQUEST\]|\[CALL_ID\]|\[TOOL_CALL|^\s{0,4}(?:TOOL_CALLS|functools)\s?\[|:\d{1,4}\s?\{"
)
_FULL_WIDTH_TAG = re.compile(r"< ?(/?) ?(?:\uff5c ?([A-Za-z]{1,20}) ?\uff5c|\| ?(DSML) ?\|) ?([^<>\n]{1,300}+)>")
_FULL_WIDTH_TOKEN = re.compile(r"<[\uff5c|]([^<>\uff5c|\n]{1,60}+)[\uff5c|]>")
_STRIPPED_TOKEN = re.compile(r"<(tool\u2581[a-z\u2581]{1,40}+)>")
_FLOWER_CALL = re.compile(
    rf"\u273fFUNCTION\u273f\s{{0,4}}:\s{{0,4}}({_NAME})\s{{0,4}}\u273fARGS\u273f\s{{0,4}}:\s{{0,4}}"
)
_FLOWER_END = re.compile(r"\s{0,4}\u273f(?:RESULT|RETURN)\u273f:?")
_BRACKETED_INPUT = re.compile(
    rf"^(\W{{0,4}}Action\W{{0,4}}:\W{{0,4}}{_NAME})\[([^\]\n]{{1,2000}}+)\][ \t]*+$", re.MULTILINE
)
_DELIMITER = re.compile(r"\]<\][\w-]{1,20}\[>\[")
_PREFIXED_TAG = re.compile(
    r"<(/?)(?:[A-Za-z]\w{0,19}:(?=tool_call|function|invoke|parameter)|[A-Za-z]{1,20}_(?=tool_call>|arg_key>|arg_value>))"
)
_BLOCK_OPENER = re.compile(
    r"<\|(?:tool_calls?_(?:begin|start)|tool_calls_section_begin|action_start\|>\s*<\|plugin|START_ACTION"
    r"|tools_prefix|tool_call)\|?>|\[TOOL_REQUEST\]|<(?:start_function_call|toolcalls?|tool-call|tool_code|function_invocation|functioncall)>",
    re.IGNORECASE,
)
_BLOCK_CLOSER = re.compile(
    r"<\|(?:tool_calls?_end|tool_calls_section_end|action_end|END_ACTION|tools_suffix|/tool_call)\|>"
    r"|<tool_call\|>|<end_function_call>|\[END_TOOL_REQUEST\]|</(?:toolcalls?|tool-call|tool_code|function_invocation|functioncall)>",
    re.IGNORECASE,
)
_REPEATED_OPENER = re.compile(r"<tool_call>(?:\s*+<tool_call>)++")
_NUMBERED_NAME = re.compile(rf"(?:<tool_call>\s{{0,4}})?\b({_NAME}):\d{{1,4}}\s{{0,4}}<\|tool_call_argument_begin\|>")
_SEPARATOR_TOKEN = re.compile(r"(?:\bfunction\s{0,4})?<\|tool_(?:sep|call_argument_begin)\|>")
_CALL_ID = re.compile(r"\[CALL_ID\][\w-]{1,64}+")
_ARGUMENT_PAIR = re.compile(
    r"(?:<arg_key>\s{0,4}|<tool_call>\s{0,4}(?=[\w.-]{1,128}\s{0,4}</arg_key>))([\w.-]{1,128}+)\s{0,4}"
    r"(?:</arg_key>\s{0,4}(?:<arg_value>)?|<arg_value>)"
    r"((?:(?!<arg_key>|<tool_call>|</?arg_value>|</tool_call>).)*+)(</arg_value>|(?=<arg_key>|</tool_call>))",
    re.DOTALL,
)
_BARE_LIST = re.compile(r"^\s{0,4}(?:TOOL_CALLS|functools)\s?(?=\[\s{0,4}\{)")
_NUMBERED_CALL = re.compile(
    r"(?:(?:^|<tool_call>)[ \t]{0,4}(?:functions\.)?|(?<=[\"\d\]}el]\})\s{0,4}functions\.)"
    rf"({_NAME}):\d{{1,4}}\s?(?=\{{)",
    re.MULTILINE,
)
_TAG_WITHOUT_START = re.compile(rf"^\s{{0,4}}function=({_NAME})>")
_PARAMETERS_WITHOUT_START = re.compile(rf"^\s{{0,4}}({_NAME})\s{{0,4}}(?=<parameter=[^<>]{{1,128}}>)")
_NAME_BEFORE_PARAMETERS = re.compile(
    rf"<tool_call>\s{{0,4}}({_NAME})>?\s{{0,4}}(?=<parameter=|</tool_call>|```(?:json)?\s{{0,4}}\{{|\{{)"
)
_NAME_TAG = re.compile(
    r"<(?:use_mcp_tool|tool_use|tool_call|function_call|invoke)>\s{0,4}"
    r"(?:<server_name>[^<>]{0,200}</server_name>\s{0,4})?"
    rf"<(?:tool_name|name|tool)>\s{{0,4}}({_NAME})\s{{0,4}}</(?:tool_name|name|tool)>\s{{0,4}}"
    r"(?:<server_name>[^<>]{0,200}</server_name>\s{0,4})?"
    r"(?:<(?:arguments|parameters|args|input)>)?",
    re.IGNORECASE,
)
_NAME_TAG_END = re.compile(r"(?:</(?:arguments|parameters|args|input)>\s{0,4})?</(?:use_mcp_tool|tool_use)>", re.I)
_OPTION_LINE = re.compile(r"^[ \t]*+--([\w-]{1,128}+)[ \t]++([^\n]++)$", re.MULTILINE)
_PREFIXED_CALL = re.compile(rf"(?:^[ \t]{{0,4}}|<tool_call>[ \t]{{0,4}})call:({_NAME})\s{{0,4}}(?=\{{)", re.MULTILINE)
_ARROW_CALL = re.compile(rf">>>[ \t]{{0,4}}({_NAME})[ \t]{{0,4}}\n(?=\s{{0,4}}\{{)")
_BLANK_IN_RECIPIENT = re.compile(r"\bto ?= ?functions ?\. ?(?=[A-Za-z_])")
_SPACED_RECIPIENT = re.compile(
    rf"\bto=({_NAME}(?: (?!(?:code|json|commentary|analysis|final)\b)[A-Za-z_]\w{{0,60}}+){{1,4}}) {{0,4}}"
    r"(?=<\|(?:constrain|message|channel)\|>)"
)
_TOOL_TAG = re.compile(
    r"(?:^[ \t]{0,8}|(?<=>))<(/?)([A-Za-z_][\w.-]{0,127}+)>(?=\s{0,8}<[/A-Za-z_]|\s{0,8}\{|\s{0,8}\Z|(?<=</))",
    re.MULTILINE,
)
_ESCAPED_QUOTE = re.compile(r'<\|"\|>|<escape>')


def normalize_markup(text: str, names: Collection[str] = ()) -> str:
    """Rewrite the special tokens and tags of model families.

    The result has calls as `<tool_call>` blocks or `<function=NAME>` tags. Other text stays as it is. `names`: the
    available tools, whose names can be tags.
    """
    if not _SIGNS.search(text):
        return text
    text = _DELIMITER.sub("", text)
    text = _FULL_WIDTH_TAG.sub(r"<\1\4>", text)
    text = _FULL_WIDTH_TOKEN.sub(_write_token, _STRIPPED_TOKEN.sub(_write_token, text))
    if "\u273f" in text:
        text = _FLOWER_END.sub("", _FLOWER_CALL.sub(r"<function=\1>", text))
    text = _BRACKETED_INPUT.sub(r"\1\nAction Input: \2", text)
    text = _ESCAPED_QUOTE.sub('"', _PREFIXED_TAG.sub(r"<\1", text))
    text = _NUMBERED_NAME.sub(r"<tool_call>\1 ", text)
    text = _BLOCK_CLOSER.sub("</tool_call>", _BLOCK_OPENER.sub("<tool_call>", text))
    text = _REPEATED_OPENER.sub("<tool_call>", _SEPARATOR_TOKEN.sub(" ", text))
    text = _CALL_ID.sub("", text)
    text = _ARGUMENT_PAIR.sub(_write_parameter, text)
    text = _BARE_LIST.sub("<tool_call>", _TAG_WITHOUT_START.sub(r"<function=\1>", text))
    text = _PARAMETERS_WITHOUT_START.sub(r"<function=\1>", _NUMBERED_CALL.sub(r"<function=\1>", text))
    text = _NAME_BEFORE_PARAMETERS.sub(r"<function=\1>", text)
    text = _NAME_TAG_END.sub("</function>", _NAME_TAG.sub(r"<function=\1>", text))
    if "[TOOL_CALL" in text:
        text = _OPTION_LINE.sub(_write_option, text)
    text = _PREFIXED_CALL.sub(r"<function=\1>", text)
    text = _ARROW_CALL.sub(r"<function=\1>", text)
    tool_names = {normalize_name(name) for name in names}
    text = _TOOL_TAG.sub(
        lambda tag: (
            f"<{tag[1]}function{'' if tag[1] else '=' + tag[2]}>" if normalize_name(tag[2]) in tool_names else tag[0]
        ),
        text,
    )
    text = _BLANK_IN_RECIPIENT.sub("to=functions.", text)
    return _SPACED_RECIPIENT.sub(lambda mark: f"to={mark[1].replace(' ', '_')}", text)


def _write_token(token: re.Match[str]) -> str:
    return f"<|{token[1]}|>".replace("\u2581", "_")


def _write_option(option: re.Match[str]) -> str:
    return f'"{option[1]}": {option[2].rstrip(" ,")},'


def _write_parameter(pair: re.Match[str]) -> str:
    return f"<parameter={pair[1]}>{pair[2]}</parameter>"
