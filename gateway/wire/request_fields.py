"""Meanings of the fields of native and legacy requests for turns.

A field is one of the route's own, another name of one (`SAME_AS`), one that changes nothing, or one that would change
the answer and is not supported (`UNSUPPORTED`). Fields that change nothing are left out, and reported once.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, LiteralString, NamedTuple, cast

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.domain.errors import UnsupportedParameter
from gateway.domain.messages import JsonObject

SAME_AS: Mapping[str, tuple[str, ...]] = {
    "max_completion_tokens": ("max_tokens",),
    "max_output_tokens": ("max_tokens",),
    "max_new_tokens": ("max_tokens",),
    "stop_sequences": ("stop",),
    "repeat_penalty": ("repetition_penalty",),
    "session_id": ("conversation_id",),
    "thread_id": ("conversation_id",),
    "chat_id": ("conversation_id",),
    "system_prompt": ("system",),
    "instructions": ("system", "system_prompt"),
    "system": ("system_prompt",),
    "save_conversation": ("store",),
    "prompt": ("user_prompt", "message", "messages"),
    "user_prompt": ("prompt", "message", "messages"),
    "message": ("prompt", "user_prompt", "messages"),
}
"""Other names of fields; the first one that the route has counts.

A name in camel case is the same as in snake case.
"""
CHANGES_NOTHING = (
    "id",
    "created_at",
    "timestamp",
    "metadata",
    "stream_options",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
)
"""Known fields that change nothing. Unknown ones are treated alike."""


class Unsupported(NamedTuple):
    """Advice for a field that would change the answer.

    It changes nothing at the neutral values, nor if it is null, false or empty. `even_empty`: an empty value does.
    """

    advice: str
    neutral: tuple[object, ...] = ()
    even_empty: bool = False


_LEAVE_OUT = "leave it out"
_NO_PROBABILITIES = "leave it out: answers have no probabilities"
_SEND_FORMAT = "send response_format"
_SEND_CONTENT = "send content, as text or as a list of parts"
_SEND_MESSAGES = "send messages"
_MEMBERS_THEMSELVES = "send its members as fields of the request"
UNSUPPORTED: Mapping[str, Unsupported] = {
    "n": Unsupported("one request gives one answer: send the request again for another", (1,)),
    "best_of": Unsupported("one request gives one answer", (1,)),
    "logprobs": Unsupported(_NO_PROBABILITIES),
    "top_logprobs": Unsupported(_NO_PROBABILITIES, (0,)),
    "logit_bias": Unsupported("leave it out, or name the words in an instruction"),
    "functions": Unsupported("send the functions as tools of the type function"),
    "function_call": Unsupported("send tool_choice"),
    "audio": Unsupported("answers are text: leave it out"),
    "modalities": Unsupported('answers are text: send ["text"]', (["text"],)),
    "prediction": Unsupported(_LEAVE_OUT),
    "web_search_options": Unsupported("use the search tool of a connected MCP server", even_empty=True),
    "search_settings": Unsupported("use the search tool of a connected MCP server"),
    "mcp_servers": Unsupported("an admin adds MCP servers at /api/v1/mcp/servers"),
    "documents": Unsupported("send their text in messages"),
    "previous_response_id": Unsupported("send conversation_id, or parent_turn_id"),
    "context_management": Unsupported(_LEAVE_OUT),
    "input": Unsupported(_SEND_MESSAGES),
    "contents": Unsupported(_SEND_MESSAGES),
    "suffix": Unsupported(_LEAVE_OUT),
    "echo": Unsupported(_LEAVE_OUT),
    "min_p": Unsupported("leave it out, or send top_p", (0,)),
    "top_a": Unsupported("leave it out, or send top_p", (0,)),
    "typical_p": Unsupported("leave it out, or send top_p", (1,)),
    "num_beams": Unsupported(_LEAVE_OUT, (1,)),
    "length_penalty": Unsupported(_LEAVE_OUT, (1,)),
    "mirostat": Unsupported(_LEAVE_OUT, (0,)),
    "verbosity": Unsupported("leave it out, or ask for the length in an instruction", ("medium",)),
    "thinking": Unsupported("send reasoning_effort", ({"type": "disabled"},)),
    "reasoning": Unsupported("send reasoning_effort"),
    "format": Unsupported(_SEND_FORMAT),
    "json_mode": Unsupported(_SEND_FORMAT),
    "json_schema": Unsupported(_SEND_FORMAT),
    "response_schema": Unsupported(_SEND_FORMAT),
    "guided_json": Unsupported(_SEND_FORMAT),
    "guided_regex": Unsupported(_SEND_FORMAT),
    "guided_choice": Unsupported(_SEND_FORMAT),
    "guided_grammar": Unsupported(_SEND_FORMAT),
    "grammar": Unsupported(_SEND_FORMAT),
    "parameters": Unsupported(_MEMBERS_THEMSELVES),
    "hyperparameters": Unsupported(_MEMBERS_THEMSELVES),
    "options": Unsupported(_MEMBERS_THEMSELVES),
    "extra_body": Unsupported(_MEMBERS_THEMSELVES),
    "generation_config": Unsupported(_MEMBERS_THEMSELVES),
    "tool_config": Unsupported("send tool_choice"),
    "system_instruction": Unsupported("send system"),
    "history": Unsupported("send the earlier messages in messages, or conversation_id"),
    "messages": Unsupported("send them to /api/v1/chat or /api/v1/chat/stream"),
    "images": Unsupported(_SEND_CONTENT),
    "files": Unsupported(_SEND_CONTENT),
    "attachments": Unsupported(_SEND_CONTENT),
}
"""Fields that would change the answer."""
UNSUPPORTED_IN_MESSAGES: Mapping[str, Unsupported] = {
    name: UNSUPPORTED[name] for name in ("function_call", "images", "files", "attachments")
} | {"parts": Unsupported(_SEND_CONTENT)}
"""The same of a message."""

_ROLES = {"developer": "system", "human": "user", "ai": "assistant", "model": "assistant"}
_MESSAGE_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name", "refusal")
_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
_MAX_NAMES = 20
_MAX_NAME_LENGTH = 64
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class FieldReader:
    """Reads the fields of one request, and collects those that change nothing."""

    def __init__(self) -> None:
        self._ignored: dict[str, None] = {}
        self._more = False
        self._sources: dict[str, str] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """At most one warning, with the names of fields that change nothing."""
        if not self._ignored:
            return ()
        names = ", ".join(self._ignored) + (" and more" if self._more else "")
        return (f"These fields of the request change nothing: {names}.",)

    def read_request(self, body: Any, accepted: Collection[str]) -> Any:
        """Return a body's fields under the route's names.

        Raises:
            UnsupportedParameter: a field would change the answer and is not supported, or two names of one field have
                different values.
        """
        if not isinstance(body, dict):
            return body
        fields = self.read_fields(cast(JsonObject, body), accepted)
        if isinstance(messages := fields.get("messages"), list):
            fields["messages"] = [
                self._read_message(message, index) for index, message in enumerate(cast(list[Any], messages))
            ]
        if isinstance(tools := fields.get("tools"), list):
            fields["tools"] = [self._read_tool(tool, index) for index, tool in enumerate(cast(list[Any], tools))]
        if "tool_choice" in fields:
            fields["tool_choice"] = _read_tool_choice(fields["tool_choice"])
        return fields

    def name_source(self, error: ValidationError) -> ValidationError:
        """Return a request's error with the fields' names as they were sent."""
        if all(name == given for name, given in self._sources.items()):
            return error
        problems = [
            InitErrorDetails(
                type=PydanticCustomError(cast(LiteralString, problem["type"]), cast(LiteralString, problem["msg"])),
                loc=self._locate_source(problem["loc"]),
                input=problem["input"],
            )
            for problem in error.errors(include_url=False)
        ]
        return ValidationError.from_exception_data(error.title, problems)

    def _locate_source(self, location: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Return where the request has a field.

        A prompt in place of a list of messages has no members.
        """
        if not location:
            return location
        name = str(location[0])
        given = self._sources.get(name, name)
        return (given,) if name == "messages" and given != name else (given, *location[1:])

    def read_member(self, body: Any, name: str, accepted: Collection[str]) -> Any:
        """Return a body whose member `name`, an object, has only accepted fields."""
        if not isinstance(body, dict) or not isinstance(member := cast(JsonObject, body).get(name), dict):
            return cast(object, body)
        fields = self.read_fields(cast(JsonObject, member), accepted, path=f"{name}.")
        return cast(JsonObject, body) | {name: fields}

    def read_fields(
        self,
        fields: JsonObject,
        accepted: Collection[str],
        *,
        path: str = "",
        unsupported: Mapping[str, Unsupported] = UNSUPPORTED,
    ) -> JsonObject:
        """Return the accepted fields of an object.

        `path` is the object's, with a final dot.
        """
        result: JsonObject = {}
        sources: dict[str, str] = {}
        for given, value in fields.items():
            name = _find_name(given, accepted)
            if name == "messages" and name != given:
                value = _to_messages(value)
            if name is None:
                refuse_unsupported_field(_to_snake_case(given), value, unsupported, path=path)
                if value is not None:
                    self._ignore(path, given)
            elif value is None and name in result:
                pass
            elif result.get(name) is None or result[name] == value:
                result[name], sources[name] = value, given
                if not path:
                    self._sources[name] = given
            else:
                problem = f"{sources[name][:_MAX_NAME_LENGTH]} and {given[:_MAX_NAME_LENGTH]} differ"
                raise make_unsupported(f"{path}{name}", "send one of them", problem)
        return result

    def _read_message(self, message: Any, index: int) -> Any:
        if not isinstance(message, dict):
            return message
        path = f"messages.{index}."
        fields = self.read_fields(
            cast(JsonObject, message), _MESSAGE_FIELDS, path=path, unsupported=UNSUPPORTED_IN_MESSAGES
        )
        role = fields.get("role")
        return fields | {"role": _ROLES.get(role, role)} if isinstance(role, str) else fields

    def _read_tool(self, tool: Any, index: int) -> Any:
        """Convert a tool to the form of chat completions.

        The forms of the Responses API, of Anthropic and of MCP have the function's fields beside the type, and the
        latter two another name for its schema. A name stays one.
        """
        if not isinstance(tool, dict):
            return tool
        fields = cast(JsonObject, tool)
        kind = fields.get("type") or "function"
        is_function = kind == "function" or (kind == "custom" and "input_schema" in fields)
        if not is_function:
            problem = f"tools of the type {str(kind)[:_MAX_NAME_LENGTH]!r} are not supported"
            raise make_unsupported(f"tools.{index}.type", "send tools of the type function", problem)
        function: Any = fields.get("function", fields)
        if not isinstance(function, dict):
            return {"type": "function", "function": function}
        function = cast(JsonObject, function)
        schema = function.get("input_schema", function.get("inputSchema"))
        function = {"parameters": schema} | function if schema is not None else function
        path = f"tools.{index}.function."
        known = {"type", "function", "input_schema", "inputSchema"}
        described = {name: value for name, value in function.items() if name not in known}
        return {"type": "function", "function": self.read_fields(described, _FUNCTION_FIELDS, path=path)}

    def _ignore(self, path: str, name: str) -> None:
        """Add a name to the warning, without the numbers of items."""
        label = re.sub(r"\.\d+\.", ".*.", path) + re.sub(r"[^\w-]", "?", name[:_MAX_NAME_LENGTH])
        if len(self._ignored) < _MAX_NAMES:
            self._ignored[label] = None
        elif label not in self._ignored:
            self._more = True


def refuse_unsupported_field(
    name: str, value: object, unsupported: Mapping[str, Unsupported] = UNSUPPORTED, *, path: str = ""
) -> None:
    """Refuse a field whose value would change the answer.

    Raises:
        UnsupportedParameter: the field is in the table, and its value changes the answer.
    """
    rule = unsupported.get(name)
    if rule is None or value is None or value is False or value in rule.neutral:
        return
    if value in ("", [], {}) and not rule.even_empty:
        return
    raise make_unsupported(f"{path}{name}", rule.advice)


def make_unsupported(name: str, advice: str, problem: str = "is not supported") -> UnsupportedParameter:
    """Build the error of a field, with advice on its replacement."""
    return UnsupportedParameter(f"{name}: {problem}; {advice}.", param=name)


def describe_unknown_fields(names: Collection[str]) -> Iterator[str]:
    """Yield a warning about ignored fields, if there are any."""
    if names:
        shown = ", ".join(name[:_MAX_NAME_LENGTH] for name in sorted(names)[:_MAX_NAMES])
        yield f"These fields are not known, and were ignored: {shown}{' and more' if len(names) > _MAX_NAMES else ''}."


def _find_name(given: str, accepted: Collection[str]) -> str | None:
    """Return the route's name of a field; None if it has none."""
    if given in accepted:
        return given
    name = _to_snake_case(given)
    return next((field for field in (name, *SAME_AS.get(name, ())) if field in accepted), None)


def _to_messages(prompt: Any) -> list[Any] | None:
    """Return a prompt or one message as a list of messages."""
    if prompt is None:
        return None
    return [prompt] if isinstance(prompt, dict) else [{"role": "user", "content": prompt}]


def _to_snake_case(name: str) -> str:
    return _WORD_START.sub("_", name).lower() if len(name) <= _MAX_NAME_LENGTH else name


def _read_tool_choice(choice: Any) -> Any:
    """Return a choice in the form of chat completions."""
    if isinstance(choice, str):
        return "required" if choice == "any" else choice
    if not isinstance(choice, dict):
        return choice
    match cast(JsonObject, choice):
        case {"type": "auto" | "none" | "required" as mode}:
            return mode
        case {"type": "any"}:
            return "required"
        case {"type": "allowed_tools", "mode": mode, "tools": tools}:
            tools = [_read_tool_choice(tool) for tool in cast(list[Any], tools)] if isinstance(tools, list) else tools
            return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}
        case {"type": "tool" | "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case _:
            return cast(object, choice)
