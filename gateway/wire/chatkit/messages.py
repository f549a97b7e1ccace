"""Messages of ChatKit's users."""

from gateway.domain.errors import UnsupportedParameter
from gateway.domain.messages import JsonObject, Message, TurnRequest
from gateway.wire.a2a.messages import MessageOptions
from gateway.wire.chatkit.items import ECHO_KEY
from gateway.wire.tool_offer import ToolOffer


def build_turn_request(item: JsonObject, options: MessageOptions, offer: ToolOffer) -> TurnRequest:
    """Convert a user's message to the request of a turn.

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
        tools=offer.select(options.tools, brings_tools=False),
        tool_choice={"type": "function", "function": {"name": choice["id"]}} if choice else None,
        conversation_id=item["thread_id"],
        approval=options.approval or "never",
        code=options.code or "key",
        echo={ECHO_KEY: item["id"]},
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
