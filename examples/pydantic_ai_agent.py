"""Run an agent of Pydantic AI with its own tool.

python examples/pydantic_ai_agent.py "How is the weather in Oslo?"
"""

import os
import sys

from pydantic_ai import Agent  # pyright: ignore[reportMissingImports]
from pydantic_ai.models.openai import OpenAIChatModel  # pyright: ignore[reportMissingImports]
from pydantic_ai.providers.openai import OpenAIProvider  # pyright: ignore[reportMissingImports]

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY", "none")
MODEL = OpenAIChatModel("openai/gpt-oss-120b", provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))

agent = Agent(MODEL, instructions="Use the tool.")


@agent.tool_plain
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It is sunny in {city}."


def main(prompt: str) -> None:
    result = agent.run_sync(prompt)
    print(result.output)
    print(f"{result.usage.requests} requests")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "How is the weather in Oslo?")
