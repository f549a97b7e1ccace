"""Chat requests, with the checks that Groq makes."""

import re
from typing import cast

import msgspec

from gateway.domain.images import RESULT_IMAGES_PREFIX
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject

_SEEING_MODELS = ("qwen/",)
REASONING_MODELS = ("openai/gpt-oss", "qwen/")
MODELS: tuple[JsonObject, ...] = tuple(
    {
        "id": name,
        "object": "model",
        "created": 1_754_400_000,
        "owned_by": owner,
        "active": True,
        "context_window": 131_072,
        "max_completion_tokens": max_tokens,
    }
    for name, owner, max_tokens in (
        ("openai/gpt-oss-120b", "OpenAI", 65_536),
        ("openai/gpt-oss-20b", "OpenAI", 65_536),
        ("qwen/qwen3.8-27b", "Alibaba Cloud", 16_384),
        ("groq/compound", "Groq", 8_192),
        ("groq/compound-mini", "Groq", 8_192),
    )
)
RETIRED_MODELS = (
    "llama-3.1-8b-instant",
    "llama-3.3-70b-versatile",
    "gemma2-9b-it",
    "mixtral-8x7b-32768",
    "qwen/qwen3-32b",
)
_FIELDS: dict[str, set[str]] = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "tool_calls", "reasoning"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
_GATEWAY_PREFIXES = ("Your tool call could not be made", RESULT_IMAGES_PREFIX)
"""Begin messages of the gateway, not of the user."""
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ApiError(Exception):
    """An HTTP error with Groq's error body."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "internal_server_error"
        fields = {"message": message, "type": kind, "code": code, "param": param}
        self.body: JsonObject = {"error": {name: value for name, value in fields.items() if value is not None}}


class _FunctionShape(msgspec.Struct):
    name: str


class _ToolShape(msgspec.Struct):
    function: _FunctionShape | None = None


class _CalledFunctionShape(msgspec.Struct):
    name: str
    arguments: str = "{}"


class _CallShape(msgspec.Struct):
    id: str
    function: _CalledFunctionShape


class _UrlShape(msgspec.Struct):
    url: str


class _PartShape(msgspec.Struct):
    type: str
    image_url: _UrlShape | None = None


class _MessageShape(msgspec.Struct):
    role: str
    content: str | list[_PartShape] | None = None
    tool_calls: list[_CallShape] | None = None
    tool_call_id: str | None = None


class _ChoiceShape(msgspec.Struct):
    function: _FunctionShape


class _SchemaShape(msgspec.Struct):
    schema: JsonObject | None = None


class _FormatShape(msgspec.Struct):
    type: str
    json_schema: _SchemaShape | None = None


class _ChatShape(msgspec.Struct):
    """Parts of a request with a fixed shape.

    Groq answers 400 to others.
    """

    messages: list[_MessageShape]
    tools: list[_ToolShape] = []
    tool_choice: str | _ChoiceShape | None = None
    response_format: _FormatShape | None = None


class Chat(msgspec.Struct, kw_only=True):
    """The fields of a chat request that the simulator uses."""

    model: str
    messages: list[JsonObject]
    stream: bool = False
    tools: list[JsonObject] = msgspec.field(default_factory=list[JsonObject])
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    reasoning_effort: str | None = None
    reasoning_format: str | None = None
    include_reasoning: bool | None = None
    response_format: JsonObject | None = None
    stream_options: JsonObject | None = None

    @property
    def functions(self) -> dict[str, JsonObject]:
        return {tool["function"]["name"]: tool["function"] for tool in self.tools if tool.get("function")}

    @property
    def max_output_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def shows_reasoning(self) -> bool:
        hidden = self.include_reasoning is False or self.reasoning_format == "hidden" or self.reasoning_effort == "none"
        return self.model.startswith(REASONING_MODELS) and not hidden

    @property
    def allows_many_calls(self) -> bool:
        """Return whether the model makes several calls in one step.

        gpt-oss does not.
        """
        return not self.model.startswith("openai/gpt-oss")

    @property
    def last_user_text(self) -> str:
        texts = (get_text(m) for m in reversed(self.messages) if m["role"] == "user")
        return next((text for text in texts if not text.startswith(_GATEWAY_PREFIXES)), "")


def list_models(context_window: int) -> list[JsonObject]:
    """List the models, each with this context window."""
    return [{**model, "context_window": context_window} for model in MODELS]


def get_text(message: JsonObject) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in cast(list[JsonObject], content))
    return str(content or "")


def check_api_key(authorization: str) -> None:
    key = authorization.removeprefix("Bearer ").strip()
    if not key or key.startswith("invalid"):
        raise ApiError(401, "Invalid API Key", "invalid_api_key")


def parse_chat_request(body: bytes) -> Chat:
    """Parse and check a request.

    Raises:
        ApiError: Groq would reject the request.
    """
    try:
        msgspec.json.decode(body, type=_ChatShape)
        chat = msgspec.json.decode(body, type=Chat)
    except JSON_DECODE_ERRORS as error:
        raise ApiError(400, str(error)) from None
    _check_model(chat.model)
    _check_messages(chat.model, chat.messages)
    _check_tools(chat)
    _check_parameters(chat)
    return chat


def _check_model(model: str) -> None:
    if model in RETIRED_MODELS:
        raise ApiError(400, f"The model `{model}` has been decommissioned.", "model_decommissioned")
    if all(model != listed["id"] for listed in MODELS):
        raise ApiError(404, f"The model `{model}` does not exist or you do not have access to it.", "model_not_found")


def has_result_images(message: JsonObject) -> bool:
    """Whether the gateway has put images of results into a message."""
    return get_text(message).startswith(RESULT_IMAGES_PREFIX)


def list_images(chat: Chat) -> list[str]:
    """List the URLs of the images of all messages."""
    parts = (part for message in chat.messages for part in _list_parts(message.get("content")))
    return [str(part["image_url"]["url"]) for part in parts if part.get("type") == "image_url"]


def _list_parts(content: object) -> list[JsonObject]:
    return cast(list[JsonObject], content) if isinstance(content, list) else []


def _check_parts(model: str, parts: list[JsonObject], where: str) -> None:
    for part in parts:
        if part.get("type") == "image_url" and not model.startswith(_SEEING_MODELS):
            raise ApiError(400, f"'{where}.content' : must be a string: the model sees no images", param=where)


def _check_messages(model: str, messages: list[JsonObject]) -> None:
    if not messages:
        raise ApiError(400, "'messages' : minimum number of items is 1", param="messages")
    pending: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        fields = _FIELDS.get(message.get("role", ""))
        if fields is None:
            raise ApiError(400, f"'{where}.role' : value is not one of the allowed values", param=where)
        if unknown := sorted(set(message) - fields):
            raise ApiError(400, f"'{where}' : property '{unknown[0]}' is unsupported", param=where)
        if message["role"] == "tool":
            pending = _remove_answered_call(pending, message.get("tool_call_id"), where)
        elif pending:
            raise ApiError(400, f"'{where}' : tool calls {sorted(pending)} have no results", param=where)
        if isinstance(message.get("content"), list):
            _check_parts(model, message["content"], where)
        if message.get("content") is None and not message.get("tool_calls"):
            raise ApiError(400, f"'{where}.content' : value must not be null", param=where)
        pending |= {call["id"] for call in message.get("tool_calls") or ()}
        _check_calls(message.get("tool_calls") or [], where)
    if pending:
        raise ApiError(400, f"tool calls {sorted(pending)} have no results", param="messages")


def _remove_answered_call(pending: set[str], call_id: str | None, where: str) -> set[str]:
    if not call_id:
        raise ApiError(400, f"'{where}.tool_call_id' : value must not be empty", param=where)
    if call_id not in pending:
        raise ApiError(400, f"'{where}' : tool_call_id '{call_id}' answers no tool call", param=where)
    return pending - {call_id}


def _check_calls(calls: list[JsonObject], where: str) -> None:
    for call in calls:
        try:
            msgspec.json.decode(call["function"]["arguments"], type=JsonObject)
        except msgspec.DecodeError:
            raise ApiError(400, f"'{where}.tool_calls' : arguments must be a JSON object", param=where) from None


def _check_tools(chat: Chat) -> None:
    if len(chat.tools) > 128:
        raise ApiError(400, "'tools' : maximum number of items is 128", param="tools")
    for name in chat.functions:
        if not _TOOL_NAME.fullmatch(name):
            raise ApiError(400, f"'tools' : function name '{name}' does not match [A-Za-z0-9_-]{{1,64}}", param="tools")
    if chat.reasoning_format == "raw" and (chat.tools or (chat.response_format or {}).get("type") == "json_object"):
        raise ApiError(400, "reasoning_format 'raw' does not go with tools or JSON mode", param="reasoning_format")
    response_format = chat.response_format or {}
    if response_format.get("type") == "json_schema" and not response_format.get("json_schema"):
        raise ApiError(400, "'response_format.json_schema' : is required", param="response_format")
    if response_format.get("type") == "json_schema" and (chat.tools or chat.stream):
        raise ApiError(400, "structured outputs do not go with tools or streaming", param="response_format")
    if chat.tool_choice == "required" and not chat.tools:
        raise ApiError(400, "tool_choice is 'required' and there are no tools", param="tool_choice")


def _check_parameters(chat: Chat) -> None:
    def check_range(name: str, value: float | None, low: float, high: float) -> None:
        if value is not None and not low <= value <= high:
            raise ApiError(400, f"'{name}' : value must be from {low:g} to {high:g}", param=name)

    check_range("temperature", chat.temperature, 0, 2)
    check_range("top_p", chat.top_p, 0, 1)
    check_range("n", chat.n, 1, 1)
    check_range("max_completion_tokens", chat.max_output_tokens, 1, 65_536)
    check_range("stop", len(chat.stop) if isinstance(chat.stop, list) else None, 0, 4)
    if chat.include_reasoning is not None and chat.reasoning_format is not None:
        raise ApiError(400, "include_reasoning and reasoning_format exclude each other", param="include_reasoning")
    allowed = ("none", "default") if chat.model.startswith("qwen/") else ("low", "medium", "high")
    if chat.reasoning_effort is not None and chat.reasoning_effort not in allowed:
        raise ApiError(400, f"'reasoning_effort' : value must be one of {', '.join(allowed)}", param="reasoning_effort")
