"""Stream a chat.

Print its text as it arrives, and each tool call with its result.

python examples/stream_chat.py "What is 23*19?"
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")


def main(prompt: str) -> None:
    body = {"messages": [{"role": "user", "content": prompt}]}
    with httpx.stream("POST", f"{URL}/api/v1/chat/stream", json=body, timeout=120) as response:
        response.raise_for_status()
        for event, data in read_events(response):
            match event:
                case "text.delta":
                    print(data["text"], end="", flush=True)
                case "tool.call":
                    print(f"-> {data['tool']} {json.dumps(data['arguments'])}")
                case "tool.result":
                    print(f"<- {data['outcome']}: {data['content'][0]['text']}")
                case "turn.completed":
                    print(f"\n{data['usage']['total_tokens']} tokens, {data['duration_ms']:.0f} ms")
                case "turn.failed" | "turn.cancelled":
                    sys.exit(f"{data['error']['code']}: {data['error']['message']}")
                case _:  # clients ignore event types that they do not know
                    pass


def read_events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Parse server-sent events into pairs of type and data."""
    event = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data" and value != "[DONE]":
            yield event, json.loads(value)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "What is 23*19?")
