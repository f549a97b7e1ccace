"""Messages of ChatKit's users."""

from typing import Any, cast
from uuid import UUID

import msgspec
from msgspec.structs import replace

from gateway.domain.errors import InvalidRequest, UnsupportedParameter
from gateway.domain.messages import JsonObject, Message, Parameters, ToolSpec, TurnRequest
from gateway.wire.a2a.messages import MessageOptions
from gateway.wire.chatkit.items import CALL_ECHO_KEY, ECHO_KEY
from gateway.wire.front_ends.tools import read_tools
from gateway.wire.tool_offer import ToolOffer

MAX_CLIENT_TOOLS = 128


def read_client_tools(metadata: JsonObject) -> tuple[ToolSpec, ...]:
    """Read the tools that the page runs: `client_tools` of the metadata.

    Raises:
        InvalidRequest: they are no list of definitions.
    """
    tools: Any = metadata.get("client_tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in cast(list[object], tools)):
        raise InvalidRequest("metadata.client_tools: must be a list of tools.", param="metadata.client_tools")
    definitions = cast(list[JsonObject], tools)
    if len(definitions) > MAX_CLIENT_TOOLS:
        message = f"metadata.client_tools: at most {MAX_CLIENT_TOOLS} are allowed, not {len(definitions)}."
        raise InvalidRequest(message, param="metadata.client_tools")
    return read_tools(definitions)


def build_turn_request(
    item: JsonObject, options: MessageOptions, offer: ToolOffer, client_tools: tuple[ToolSpec, ...] = ()
) -> TurnRequest:
    """Convert a user's message to the request of a turn.

    A thread has one pending client call at a time, so the model is told to make one call at a time.

    Raises:
        UnsupportedParameter: the message has attachments.
    """
    if item.get("attachments"):
        raise UnsupportedParameter("attachments: are not supported; send text.", param="attachments")
    inference: JsonObject = item.get("inference_options") or {}
    choice: JsonObject = inference.get("tool_choice") or {}
    return TurnRequest(
        messages=(Message("user", read_prompt(item)),),
        message_paths=("input.content",),
        model=inference.get("model") or options.model or "",
        system=options.system,
        parameters=Parameters(parallel_tool_calls=False) if client_tools else Parameters(),
        tools=offer.select(options.tool_selection, brings_tools=bool(client_tools)),
        client_tools=client_tools,
        tool_choice={"type": "function", "function": {"name": choice["id"]}} if choice else None,
        conversation_id=item["thread_id"],
        approval=options.approval or "never",
        code=options.code or "key",
        toolset=options.toolset,
        echo={ECHO_KEY: item["id"]},
    )


def build_continuation(request: TurnRequest, call: JsonObject, thread_id: str, turn_id: UUID) -> TurnRequest:
    """Build the request of a turn that gets a result.

    `request` is that of the turn, and `call` the answered item.
    """
    output: object = call.get("output")
    content = output if isinstance(output, str) else msgspec.json.encode(output).decode()
    return replace(
        request,
        messages=(Message("tool", content, tool_call_id=call["call_id"]),),
        message_paths=("params.result",),
        tool_choice=None,
        conversation_id=thread_id,
        parent_turn_id=turn_id,
        origin=None,
        follow_ups=(),
        on_disconnect="cancel",
        idempotency_key=None,
        warnings=(),
        webhook_url=None,
        echo={CALL_ECHO_KEY: call["id"]},
    )


def read_prompt(item: JsonObject) -> str:
    """Join the texts and tags of a message.

    The text that it quotes stands before them.
    """
    text = "".join(f"@{part['text']}" if part["type"] == "input_tag" else part["text"] for part in item["content"])
    quoted = item.get("quoted_text")
    if not quoted:
        return text
    quotation = "\n".join(f"> {line}" for line in str(quoted).splitlines())
    return f"{quotation}\n\n{text}"
