"""Stream a message with the official `anthropic` SDK.

python examples/anthropic_sdk.py "What is 23*19?"
"""

import os
import sys

from anthropic import Anthropic

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY", "none")


def main(prompt: str) -> None:
    client = Anthropic(base_url=URL, api_key=KEY)
    model = client.models.list().data[0].id
    with client.messages.stream(
        model=model, max_tokens=1_000, messages=[{"role": "user", "content": prompt}]
    ) as stream:
        for text in stream.text_stream:
            print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is 23*19?")
