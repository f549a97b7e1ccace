"""A chat in the browser, built with Gradio.

Send the whole list of messages to the gateway, and show its tool calls.

make demo
"""

# pyright: basic, reportMissingImports=false

import asyncio
import copy
import json
import os
from collections.abc import AsyncGenerator
from typing import Any

import gradio as gr
import httpx

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_KEY")
_TIMEOUT = httpx.Timeout(120, connect=5)


async def answer(message: str, history: list[dict[str, Any]]) -> AsyncGenerator[list[gr.ChatMessage]]:
    """Yield the answer so far, each time with more of it."""
    messages = [*read_history(history), {"role": "user", "content": message}]
    shown: list[gr.ChatMessage] = []
    calls: dict[str, gr.ChatMessage] = {}
    try:
        async for event in stream_turn(messages):
            apply(event, shown, calls)
            yield copy.deepcopy(shown)  # Gradio sends the difference to the last one
    except httpx.HTTPStatusError as error:
        yield [*shown, gr.ChatMessage(f"The gateway answered: {read_problem(error.response)}")]
    except httpx.HTTPError:
        yield [*shown, gr.ChatMessage(f"The gateway at {URL} does not answer.")]


def read_history(history: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the texts of the chat, without tool calls."""
    texts = [(entry["role"], read_text(entry["content"])) for entry in history if not (entry.get("metadata") or {})]
    return [{"role": role, "content": text} for role, text in texts if text]


def read_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")


async def stream_turn(messages: list[dict[str, str]]) -> AsyncGenerator[dict[str, Any]]:
    """Start a turn, and yield its events."""
    headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
    async with (
        httpx.AsyncClient(base_url=URL, timeout=_TIMEOUT, headers=headers) as client,
        client.stream("POST", "/api/v1/chat/stream", json={"messages": messages}) as response,
    ):
        if response.is_error:
            await response.aread()
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


def apply(event: dict[str, Any], shown: list[gr.ChatMessage], calls: dict[str, gr.ChatMessage]) -> None:
    """Add an event to the messages that are shown."""
    match event["type"]:
        case "text.delta":
            if not shown or shown[-1].metadata:
                shown.append(gr.ChatMessage(""))
            shown[-1].content += event["text"]
        case "tool.call":
            arguments = json.dumps(event["arguments"], indent=2, ensure_ascii=False)
            metadata = {"title": f"Tool {event['tool']}", "status": "pending", "id": event["call_id"]}
            calls[event["call_id"]] = gr.ChatMessage(quote(arguments), metadata=metadata)
            shown.append(calls[event["call_id"]])
        case "tool.result" if event["call_id"] in calls:
            call = calls[event["call_id"]]
            texts = [block["text"] for block in event["content"] if block["type"] == "text"]
            call.content += quote("\n".join(texts)[:4_000])
            call.metadata["status"] = "done"
            call.metadata["duration"] = event["duration_ms"] / 1_000
        case "input.required":
            shown.append(gr.ChatMessage(f"The turn waits for a person: {event['message']}"))
        case "turn.failed" | "turn.cancelled":
            shown.append(gr.ChatMessage(event["error"]["message"]))
        case _:  # clients ignore event types that they do not know
            pass


def quote(text: str) -> str:
    """Return a block of code whose end the text cannot contain."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"\n{fence}\n{text}\n{fence}\n"


def read_problem(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"


def create_demo() -> gr.ChatInterface:
    return gr.ChatInterface(
        answer,
        title="MCP agent gateway",
        examples=["What is 23*19?", "Add a task to buy milk"],
        # Without "share", which would publish the conversation.
        chatbot=gr.Chatbot(label="Chat", sanitize_html=True, height=560, buttons=["copy", "copy_all"]),
        api_name="chat",
    )


async def main() -> None:
    demo = create_demo()
    host, port = os.environ.get("DEMO_HOST", "127.0.0.1"), int(os.environ.get("DEMO_PORT", "8003"))
    demo.launch(server_name=host, server_port=port, quiet=True, prevent_thread_lock=True)
    print(f"The demo is at {demo.local_url}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    asyncio.run(main())
