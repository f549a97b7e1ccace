"""Use the official OpenAI SDK.

The gateway runs its own tools and streams only the answer.

python examples/openai_sdk.py "What is 23*19?"
"""

import os
import sys

from openai import OpenAI

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")


def main(prompt: str) -> None:
    # A gateway without authentication ignores the key, but the SDK demands one.
    client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("GATEWAY_API_KEY", "none"))
    stream = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": prompt}],
        stream=True,
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "What is 23*19?")
