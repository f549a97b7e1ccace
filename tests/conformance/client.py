"""The client that the conformance suite drives: the gateway's own toolbox. `python -m tests.conformance.client URL`."""

import asyncio
import json
import os
import sys
from typing import Any
from uuid import UUID

from gateway.config import Settings
from gateway.messages import Answer, InputNeeded, KeptInput, Principal, Question, ToolSpec
from gateway.tools.servers import ServerConfig
from gateway.tools.toolbox import McpToolbox

_NOBODY = UUID(int=0)
ADA = Principal("ada")


class Person:
    """Hears everything, and accepts every question with its defaults."""

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        pass

    def log(self, level: str, message: str) -> None:
        pass

    async def ask(self, question: Question) -> Answer:
        return Answer("accept", fit(question.schema or {}))


def fit(schema: Any) -> Any:
    """A value for a schema: its default, its first choice, or the plainest of its type."""
    if "default" in schema:
        return schema["default"]
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            required = set(schema.get("required", ()))
            fields = schema.get("properties", {}).items()
            return {name: fit(field) for name, field in fields if name in required or "default" in field}
        case "integer" | "number":
            return 5
        case "boolean":
            return True
        case "array":
            return []
        case _:
            return "text"


def sample(spec: ToolSpec, toolbox: McpToolbox) -> dict[str, Any]:
    """Arguments for a call; what asks for a schema wants one back as we got it."""
    if "schema" in spec.input_schema.get("properties", {}):
        return {"schema": next(other.input_schema for other in toolbox.specs() if other is not spec)}
    return fit(spec.input_schema)


async def call(toolbox: McpToolbox, spec: ToolSpec, arguments: dict[str, Any]) -> None:
    answers: list[KeptInput] = []
    for _ in range(5):
        result = await toolbox.call(spec, arguments, principal=ADA, observer=Person(), answers=answers)
        if not isinstance(result, InputNeeded):
            return
        person = Person()
        answers = [
            KeptInput(id=_NOBODY, call_id="", question=q, state=result.state, answer=await person.ask(q))
            for q in result.questions
        ]


async def main(url: str) -> None:
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    toolbox = McpToolbox([ServerConfig(name="suite", url=url, prefix="")], settings)
    await toolbox.start()
    try:
        await toolbox.settle(10)
        wanted = context.get("toolCalls")
        for spec in toolbox.specs():
            given = [each["arguments"] for each in wanted or () if each["name"] == spec.tool]
            await asyncio.gather(
                *(call(toolbox, spec, each) for each in given or ([] if wanted else [sample(spec, toolbox)]))
            )
    finally:
        await toolbox.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[-1]))
