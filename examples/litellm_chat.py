"""Stream an answer with LiteLLM, by each of its providers.

python examples/litellm_chat.py "What is 23*19?"
"""

import os
import sys

import litellm  # pyright: ignore[reportMissingImports]

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY", "none")
MODEL = "openai/gpt-oss-120b"
PROVIDERS = {"openai": f"{URL}/v1", "anthropic": URL}


def main(prompt: str) -> None:
    litellm.telemetry = False
    for provider, base_url in PROVIDERS.items():
        chunks = litellm.completion(
            model=f"{provider}/{MODEL}",
            messages=[{"role": "user", "content": prompt}],
            api_base=base_url,
            api_key=KEY,
            stream=True,
        )
        print(f"{provider}: ", end="")
        for chunk in chunks:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "What is 23*19?")
