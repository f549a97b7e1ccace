"""Send a message to ChatKit's server, with the SDK's own types.

A page does the same with ChatKit.js, whose `api.url` is the gateway's `/chatkit`.

python examples/chatkit_thread.py "What is 23*19?"
"""

import asyncio
import os
import sys

import httpx
from chatkit import types
from pydantic import TypeAdapter

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY")
EVENT: TypeAdapter[types.ThreadStreamEvent] = TypeAdapter(types.ThreadStreamEvent)


async def main(prompt: str) -> None:
    content: list[types.UserMessageContent] = [types.UserMessageTextContent(text=prompt)]
    message = types.UserMessageInput(content=content, attachments=[], inference_options=types.InferenceOptions())
    request = types.ThreadsCreateReq(params=types.ThreadCreateParams(input=message))
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {KEY}"} if KEY else {})}
    body = request.model_dump_json(exclude_none=True)
    async with (
        httpx.AsyncClient(headers=headers, timeout=60) as http,
        http.stream("POST", f"{URL}/chatkit", content=body) as response,
    ):
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                show_event(EVENT.validate_json(line.removeprefix("data: ")))


def show_event(event: types.ThreadStreamEvent) -> None:
    """Print the thread, the calls and the answer."""
    if isinstance(event, types.ThreadCreatedEvent):
        print(f"thread {event.thread.id}")
    elif isinstance(event, types.ThreadItemDoneEvent) and isinstance(event.item, types.WorkflowItem):
        print("called", ", ".join(str(task.title) for task in event.item.workflow.tasks))
    elif isinstance(event, types.ThreadItemDoneEvent) and isinstance(event.item, types.AssistantMessageItem):
        print("".join(part.text for part in event.item.content))
    elif isinstance(event, types.ErrorEvent):
        print(f"error: {event.message}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "What is 23*19?"))
