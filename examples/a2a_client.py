"""Reach the gateway as an agent, with the official SDK of A2A.

The client finds the gateway by its card, streams a task, and answers its questions.

python examples/a2a_client.py "Add a task to buy milk"
"""

import asyncio
import os
import sys

import httpx
from a2a.client import ClientConfig, create_client
from a2a.types import a2a_pb2 as types
from google.protobuf.json_format import ParseDict

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY")


def build_request(text: str, task_id: str = "") -> types.SendMessageRequest:
    message = {"role": "ROLE_USER", "messageId": os.urandom(8).hex(), "taskId": task_id, "parts": [{"text": text}]}
    body = {"message": message, "metadata": {"approval": "always"}}
    return ParseDict(body, types.SendMessageRequest())


async def main(prompt: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        client = await create_client(URL, client_config=ClientConfig(httpx_client=http))
        request, task_id = build_request(prompt), ""
        while True:
            status = types.TaskStatus()
            async for response in client.send_message(request):
                match response.WhichOneof("payload"):
                    case "task":
                        task_id = response.task.id
                    case "artifact_update":
                        parts = response.artifact_update.artifact.parts
                        print("".join(part.text for part in parts), end="", flush=True)
                    case "status_update":
                        status = response.status_update.status
                    case _:
                        pass
            if status.state != types.TaskState.TASK_STATE_INPUT_REQUIRED:
                print(f"\n{types.TaskState.Name(status.state)}")
                return
            question = status.message.parts[0].text
            request = build_request(await asyncio.to_thread(input, f"{question} (yes or no) "), task_id)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "What is 23*19?"))
