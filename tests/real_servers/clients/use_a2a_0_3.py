"""The SDK of A2A 0.3: card, stream, question and errors."""

import asyncio
import json
import sys
from typing import Any

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientJSONRPCError
from a2a.types import Message, Part, Role, TaskArtifactUpdateEvent, TaskIdParams, TaskQueryParams, TextPart


def make_message(text: str, **fields: Any) -> Message:
    return Message(role=Role.user, message_id="m1", parts=[Part(root=TextPart(text=text))], **fields)


async def main(url: str) -> None:
    async with httpx.AsyncClient(timeout=60) as http:
        card = await A2ACardResolver(http, url).get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http)).create(card)
        text, kinds = "", []
        async for event in client.send_message(make_message("What is 23*19?")):
            assert isinstance(event, tuple)
            task, update = event
            kinds.append(update.kind if update else "task")
            if isinstance(update, TaskArtifactUpdateEvent):
                text += "".join(part.root.text for part in update.artifact.parts if isinstance(part.root, TextPart))
        whole = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)
        ask = make_message("Add a task to rest", metadata={"approval": "always"})
        [(asked, _)] = [event async for event in whole.send_message(ask) if isinstance(event, tuple)]
        yes = make_message("yes", task_id=asked.id, context_id=asked.context_id)
        [(answered, _)] = [event async for event in whole.send_message(yes) if isinstance(event, tuple)]
        got = await client.get_task(TaskQueryParams(id=task.id))
        codes = []
        for attempt in (
            client.cancel_task(TaskIdParams(id=answered.id)),
            client.get_task(TaskQueryParams(id="no-id")),
        ):
            try:
                await attempt
            except A2AClientJSONRPCError as error:
                codes.append(error.error.code)
    print(
        json.dumps(
            {
                "version": card.protocol_version,
                "kinds": kinds,
                "text": text,
                "got": got.status.state,
                "asked": asked.status.state,
                "answered": [answered.status.state, answered.id == asked.id],
                "codes": codes,
            }
        )
    )


asyncio.run(main(sys.argv[1]))
