"""Stream an answer with LangChain's `ChatOpenAI`.

python examples/langchain_chat.py "What is 23*19?"
"""

import os
import sys

from langchain_openai import ChatOpenAI
from pydantic import SecretStr

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY", "none")


def main(prompt: str) -> None:
    model = ChatOpenAI(base_url=f"{URL}/v1", api_key=SecretStr(KEY), model="openai/gpt-oss-120b")
    for chunk in model.stream(prompt):
        print(chunk.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is 23*19?")
