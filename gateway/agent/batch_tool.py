"""The `batch` tool: several read-only calls in one.

It serves models that make one call per step.
"""

import asyncio
from collections.abc import Awaitable, Callable

from gateway.domain.messages import JsonObject, PendingInput, ToolResult, ToolSpec, text_block

BATCH = "batch"
_MAX_CALLS = 20
CallTool = Callable[[ToolSpec, JsonObject, int], Awaitable[ToolResult | PendingInput]]
"""Call of a tool. The number counts from 1 within the batch."""


def build_batch_spec(offered: tuple[ToolSpec, ...]) -> ToolSpec | None:
    """Build the tool from the offered ones.

    None if none of them can be batched.
    """
    names = [spec.name for spec in offered if _can_batch(spec)]
    if not names:
        return None
    schema: JsonObject = {
        "type": "object",
        "properties": {
            "calls": {
                "type": "array",
                "minItems": 1,
                "maxItems": _MAX_CALLS,
                "items": {
                    "type": "object",
                    "properties": {"tool": {"type": "string", "enum": names}, "arguments": {"type": "object"}},
                    "required": ["tool", "arguments"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["calls"],
        "additionalProperties": False,
    }
    description = "Call several read-only tools at once, each with its own arguments. The results keep their order."
    return ToolSpec(
        BATCH, "gateway", BATCH, description, schema, read_only=True, destructive=False, idempotent=True, helper=True
    )


async def run_batch(arguments: JsonObject, offered: dict[str, ToolSpec], call_tool: CallTool, limit: int) -> ToolResult:
    """Run the calls and return their results in order.

    At most `limit` calls run at once. A failed call does not affect the others.
    """
    slots = asyncio.Semaphore(limit)

    async def run_one(number: int, call: JsonObject) -> ToolResult:
        spec = offered.get(call["tool"])
        if spec is None or not _can_batch(spec):
            return _error_result(f"{call['tool']!r} is not a read-only tool. Call it by itself.")
        async with slots:
            result = await call_tool(spec, call["arguments"], number)
        if isinstance(result, PendingInput):
            return _error_result(f"{spec.name} has a question for the user. Call it by itself.")
        return result

    calls: list[JsonObject] = arguments["calls"]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run_one(number, call)) for number, call in enumerate(calls, start=1)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    results = [task.result() for task in tasks]
    content: list[JsonObject] = []
    for number, (call, result) in enumerate(zip(calls, results, strict=True), start=1):
        content += [text_block(f"{number}. {call['tool']}: {result.outcome}"), *result.content]
    structured = [
        {"tool": call["tool"], "outcome": result.outcome, "structured": result.structured}
        for call, result in zip(calls, results, strict=True)
    ]
    failed = all(result.outcome != "ok" for result in results)
    return ToolResult("error" if failed else "ok", content, {"results": structured})


def _can_batch(spec: ToolSpec) -> bool:
    return spec.read_only and not spec.client and not spec.helper and spec.approval != "always"


def _error_result(message: str) -> ToolResult:
    return ToolResult("error", [text_block(message)])
