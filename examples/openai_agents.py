"""Run an agent of the OpenAI Agents SDK with its own tool.

python examples/openai_agents.py "How is the weather in Oslo?"
"""

import asyncio
import os
import sys

from agents import Agent, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

URL = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("GATEWAY_API_KEY", "none")


@function_tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"It is sunny in {city}."


async def main(prompt: str) -> None:
    set_tracing_disabled(disabled=True)  # else the SDK reports each run to OpenAI
    model = OpenAIResponsesModel("openai/gpt-oss-120b", AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY))
    agent = Agent(name="Weather", instructions="Use the tool.", model=model, tools=[get_weather])
    result = await Runner.run(agent, prompt)
    print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "How is the weather in Oslo?"))
