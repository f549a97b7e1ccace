"""Input items of the Responses API, also those of a stored response."""

from typing import Annotated, Literal, cast, get_args

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject, Message, Role, ToolCall
from gateway.wire.client_tools import CLIENT_CALL_ID
from gateway.wire.openai_response_ids import APPROVAL_ID_PATTERN, ApprovalId, parse_approval_id
from gateway.wire.openai_response_tools import Tool
from gateway_runtime.requests.model import ItemList


class _InputItem(BaseModel):
    """Input item. Additional fields of an output item are accepted and ignored."""

    model_config = ConfigDict(extra="ignore")


class MessageItem(_InputItem):
    """Message of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | ItemList[JsonObject]


class FunctionCallItem(_InputItem):
    """Call of a client tool. The model's server may need its `extra_content`."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=128)
    arguments: str = "{}"
    extra_content: object = None


class CustomCallItem(_InputItem):
    """Call of a custom tool, from another server's history."""

    type: Literal["custom_tool_call"]
    call_id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=128)
    input: str = ""


class FunctionCallOutputItem(_InputItem):
    """Result of a client tool's call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str = Field(min_length=1, max_length=128)
    output: str | ItemList[JsonObject]


class McpCallItem(_InputItem):
    """Call of a gateway tool, with its result."""

    type: Literal["mcp_call"]
    id: str = Field(min_length=1, max_length=128)
    name: str = Field(max_length=128)
    arguments: str = "{}"
    output: str | None = None
    error: object = None


class ApprovalItem(_InputItem):
    """Answer to an approval request."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str = Field(pattern=APPROVAL_ID_PATTERN)
    approve: bool

    @property
    def parsed_id(self) -> ApprovalId:
        return parse_approval_id(self.approval_request_id)


class IgnoredItem(_InputItem):
    """Output item that is not sent to the model."""

    type: Literal["reasoning", "mcp_list_tools", "mcp_approval_request"]


class HostedItem(_InputItem):
    """Call of a tool that ran at OpenAI.

    It is left out with a warning, like such tools.
    """

    type: Literal[
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "tool_search_call",
        "tool_search_output",
    ]


class ReferenceItem(_InputItem):
    """Item of an earlier response, by its id."""

    type: Literal["item_reference"]
    id: str = Field(min_length=1, max_length=128)


class AdditionalToolsItem(_InputItem):
    """Further tools of the client, as some models of Codex bring them."""

    type: Literal["additional_tools"]
    tools: Annotated[ItemList[Tool], Field(max_length=128)] = []


def get_item_type(item: JsonObject) -> object:
    """Return the type of an item.

    Without one, it is a message, or a reference if it has an id and no role.
    """
    kind = item.get("type")
    return kind if kind is not None else "message" if "role" in item or "id" not in item else "item_reference"


def _add_default_type(item: object) -> object:
    """Add the type to an item without one.

    The type alone then selects the model of an item.
    """
    if not isinstance(item, dict):
        return item
    fields = cast(JsonObject, item)
    return {**fields, "type": get_item_type(fields)}


_Item = (
    MessageItem
    | FunctionCallItem
    | CustomCallItem
    | FunctionCallOutputItem
    | HostedItem
    | McpCallItem
    | ApprovalItem
    | IgnoredItem
    | ReferenceItem
    | AdditionalToolsItem
)
InputItem = Annotated[_Item, Field(discriminator="type"), BeforeValidator(_add_default_type)]
ITEM_TYPES = frozenset(name for model in get_args(_Item) for name in get_args(model.model_fields["type"].annotation))
parse_items = TypeAdapter(list[InputItem]).validate_python


def parse_content(content: str | ItemList[JsonObject], path: str) -> str | ItemList[JsonObject]:
    """Convert content parts to the format of chat completions.

    If all parts are text, the result is one text. `path` leads to the content in the request.
    """
    if isinstance(content, str):
        return content
    parts: list[JsonObject] = []
    for index, part in enumerate(content):
        match part:
            case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "refusal", "refusal": str(text)}:
                parts.append({"type": "text", "text": text})
            case {"type": "input_image", "image_url": str(url)}:
                parts.append({"type": "image_url", "image_url": {"url": url}})
            case _:
                kind = str(part.get("type"))[:80]
                advice = "send input_text, or input_image with an image_url"
                name = f"{path}.{index}"
                raise InvalidRequest(f"{name}: content of the type {kind!r} is not supported; {advice}.", param=name)
    return "\n".join(p["text"] for p in parts) if all(p["type"] == "text" for p in parts) else parts


def to_messages(items: str | list[InputItem]) -> list[Message]:
    """Convert input items to messages."""
    return [message for message, _ in to_named_messages(items)]


def to_named_messages(items: str | list[InputItem]) -> list[tuple[Message, str]]:
    """Convert input items to messages with their paths.

    Consecutive calls become one message of the assistant.
    """
    if isinstance(items, str):
        return [(Message("user", items), "input")]
    # With ids of client calls, the gateway restores the calls of its own tools beside them, so these are skipped here.
    restores_history = any(
        isinstance(item, FunctionCallItem) and CLIENT_CALL_ID.fullmatch(item.call_id) for item in items
    )
    messages: list[tuple[Message, str]] = []
    for index, item in enumerate(items):
        path = f"input.{index}"
        match item:
            case MessageItem():
                role: Role = "system" if item.role == "developer" else item.role
                messages.append((Message(role, parse_content(item.content, f"{path}.content")), path))
            case FunctionCallItem():
                call = ToolCall(item.call_id, item.name, item.arguments, extra_content=item.extra_content)
                _add_call(messages, call, path)
            case CustomCallItem():
                arguments = msgspec.json.encode({"input": item.input}).decode()
                _add_call(messages, ToolCall(item.call_id, item.name, arguments), path)
            case FunctionCallOutputItem():
                output = item.output if isinstance(item.output, str) else parse_content(item.output, f"{path}.output")
                messages.append((Message("tool", output, tool_call_id=item.call_id), path))
            case McpCallItem() if not restores_history:
                messages.append((Message("assistant", None, (ToolCall(item.id, item.name, item.arguments),)), path))
                result = item.output if item.error is None else f"Error: {item.error}"
                messages.append((Message("tool", result or "(no output)", tool_call_id=item.id), path))
            case _:
                pass
    if not messages:
        raise InvalidRequest("input: must contain at least one message or tool result.", param="input")
    return messages


def _add_call(messages: list[tuple[Message, str]], call: ToolCall, path: str) -> None:
    last, last_path = messages[-1] if messages else (None, path)
    if last is not None and last.role == "assistant" and (last.tool_calls or last.content):
        messages[-1] = (msgspec.structs.replace(last, tool_calls=(*last.tool_calls, call)), last_path)
    else:
        messages.append((Message("assistant", None, (call,)), path))
