"""Get a chat completion with the official `groq` SDK.

python examples/groq_sdk.py "What is 23*19?"
"""

import os
import sys

from groq import Groq

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY", "none")


def main(prompt: str) -> None:
    client = Groq(base_url=URL, api_key=KEY)
    model = client.models.list().data[0].id
    completion = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
    print(completion.choices[0].message.content)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is 23*19?")
