"""Lose the connection in the middle of a turn, then read on.

No event is missed or repeated.

python examples/resume_stream.py
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")


def main() -> None:
    body = {
        "messages": [{"role": "user", "content": "count to 100"}],
        "on_disconnect": "continue",  # the default, `cancel`, ends the turn with its connection
    }
    text, last_id = "", 0
    with httpx.Client(base_url=URL, timeout=120) as client:
        with client.stream("POST", "/api/v1/chat/stream", json=body) as response:
            response.raise_for_status()
            turn_id = response.headers["X-Turn-Id"]
            for number, data in read_events(response):
                last_id = number
                if data["type"] == "text.delta":
                    text += data["text"]
                    break  # the connection is lost after the first words
        print(f"disconnected after event {last_id}")

        # Any worker can answer this, also long after the turn has ended.
        headers = {"Last-Event-ID": str(last_id)}
        with client.stream("GET", f"/api/v1/turns/{turn_id}/events", headers=headers) as response:
            response.raise_for_status()
            for number, data in read_events(response):
                assert number > last_id
                last_id = number
                if data["type"] == "text.delta":
                    text += data["text"]
    print(f"finished with event {last_id}")
    print(text)


def read_events(response: httpx.Response) -> Iterator[tuple[int, Any]]:
    """Parse the numbered server-sent events into pairs of number and data."""
    number: int | None = None
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "data" and number is not None:
            yield number, json.loads(value)
            number = None  # `stream.closing` and `[DONE]` have no number


if __name__ == "__main__":
    main()
