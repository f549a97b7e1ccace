"""Stream turns of the Responses API with the OpenAI SDK.

python examples/openai_responses.py "My name is Zoe." "What is my name?"
"""

import os
import sys

from openai import OpenAI

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY", "none")


def main(prompts: list[str]) -> None:
    client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
    model = client.models.list().data[0].id
    previous_id: str | None = None
    for prompt in prompts:
        with client.responses.stream(model=model, input=prompt, previous_response_id=previous_id or None) as stream:
            for event in stream:
                if event.type == "response.output_text.delta":
                    print(event.delta, end="", flush=True)
            response = stream.get_final_response()
        previous_id = response.id
        print(f"\n{response.status}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["My name is Zoe.", "What is my name?"])
