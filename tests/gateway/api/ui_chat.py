"""Chats of the AI SDK, and helpers to test them."""

import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

import aiohttp

from tests.stack import Gateway


def make_message(text: str, **fields: Any) -> dict[str, Any]:
    return {"id": uuid4().hex[:16], "role": "user", "parts": [{"type": "text", "text": text}], **fields}


class UIChat:
    """A chat that applies chunks as the SDK does."""

    def __init__(self, gateway: Gateway, **body: Any) -> None:
        self.gateway = gateway
        self.id = uuid4().hex[:16]
        self.body = body
        self.messages: list[dict[str, Any]] = []
        self.chunks: list[dict[str, Any]] = []
        self.status = 0

    async def send(self, *messages: Any, **body: Any) -> dict[str, Any]:
        """Send the chat with new messages; return the answer."""
        self.messages += [make_message(m) if isinstance(m, str) else m for m in messages]
        request = {"id": self.id, "messages": self.messages, "trigger": "submit-message", **self.body, **body}
        async with self.gateway.session.post(f"{self.gateway.base_url}/api/v1/ui-messages", json=request) as response:
            self.status = response.status
            assert response.status == 200, await response.text()
            assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
            return await self.read_answer(response)

    async def read_answer(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        self.chunks = [chunk async for chunk in read_chunks(response)]
        start = self.chunks[0]
        last = self.messages[-1] if self.messages else {}
        if last.get("id") == start["messageId"]:
            answer = last
        else:
            answer = {"id": start["messageId"], "role": "assistant", "parts": [], "metadata": {}}
            self.messages.append(answer)
        for chunk in self.chunks:
            apply_chunk(answer, chunk)
        return answer

    @property
    def types(self) -> list[str]:
        return [chunk["type"] for chunk in self.chunks]

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.messages[-1]["parts"] if part["type"] == "text")


def apply_chunk(answer: dict[str, Any], chunk: dict[str, Any]) -> None:
    answer["metadata"] |= chunk.get("messageMetadata") or {}
    parts, kind = answer["parts"], chunk["type"]
    part = next((p for p in parts if p.get("toolCallId") == chunk.get("toolCallId") is not None), {})
    match kind:
        case "start-step":
            parts.append({"type": "step-start"})
        case "text-start" | "reasoning-start":
            parts.append({"type": kind.removesuffix("-start"), "text": ""})
        case "text-delta" | "reasoning-delta":
            parts[-1]["text"] += chunk["delta"]
        case "tool-input-start":
            name = "dynamic-tool" if chunk.get("dynamic") else f"tool-{chunk['toolName']}"
            parts.append(
                {"type": name, "state": "input-streaming", **{k: chunk[k] for k in ("toolCallId", "toolName")}}
            )
        case "tool-input-available":
            part |= {"state": "input-available", "input": chunk["input"]}
        case "tool-approval-request":
            part |= {"state": "approval-requested", "approval": {"id": chunk["approvalId"]}}
        case "tool-output-available":
            part |= {"state": "output-available", "output": chunk["output"]}
        case "tool-output-error":
            part |= {"state": "output-error", "errorText": chunk["errorText"]}
        case "tool-output-denied":
            part |= {"state": "output-denied"}
        case _:
            pass


async def read_chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any]]:
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
        elif line:
            assert line.startswith((":", "data: [DONE]")), line


def list_sent(gateway: Gateway) -> list[tuple[str, str]]:
    """Return the last messages of the model, without the system prompt."""
    messages = gateway.simulator.requests[-1]["messages"]
    return [(message["role"], str(message.get("content"))) for message in messages if message["role"] != "system"]


def list_asked(gateway: Gateway) -> list[str]:
    """Return the user's messages that the model got last."""
    return [content for role, content in list_sent(gateway) if role == "user"]


def get_part(message: dict[str, Any], kind: str = "dynamic-tool") -> dict[str, Any]:
    return next(part for part in message["parts"] if part["type"] == kind)


def decide(answer: dict[str, Any], *, approved: bool) -> None:
    """Decide as `addToolApprovalResponse` does."""
    part = get_part(answer)
    assert part["state"] == "approval-requested"
    part |= {"state": "approval-responded", "approval": part["approval"] | {"approved": approved}}


async def resume(chat: UIChat, gateway: Gateway | None = None) -> int:
    """Follow the chat's answer as a page that was loaded again does."""
    url = f"{(gateway or chat.gateway).base_url}/api/v1/ui-messages/{chat.id}/stream"
    async with chat.gateway.session.get(url) as response:
        if response.status == 200:
            chat.messages = [message for message in chat.messages if message["role"] == "user"]
            await chat.read_answer(response)
        return response.status
