"""Let a person decide about a tool call.

The turn waits in the database until the answer arrives.

echo y | python examples/approve_tool_call.py "Add a task to buy milk"
"""

import os
import sys

import httpx

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")


def main(prompt: str) -> None:
    body = {"messages": [{"role": "user", "content": prompt}], "approval": "always"}
    with httpx.Client(base_url=URL, timeout=120) as client:
        turn = client.post("/api/v1/chat", json=body).raise_for_status().json()
        turn_id = turn["turn_id"]
        for question in turn["inputs"]:
            print(question["message"])
            action = "accept" if input("Allow it? [y/n] ") == "y" else "decline"
            answer = {"input_id": question["input_id"], "action": action}
            client.post(f"/api/v1/turns/{turn_id}/input", json=answer).raise_for_status()

        # The event stream ends when the turn does.
        client.get(f"/api/v1/turns/{turn_id}/events").raise_for_status()
        print(client.get(f"/api/v1/turns/{turn_id}").raise_for_status().json()["response"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Add a task to buy milk")
