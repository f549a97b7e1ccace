"""`python -m benchmarks.code_mode`: compare the tokens of calls and programs.

The task adds up the numbers in the titles of five tasks, with 10, 100 and 500 tools on offer and the simulated model.
Model servers take 128 tools, so the tokens with all schemas are computed: those of the messages, and those of the
definitions times the model calls.
"""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.many_tools import ToolServers
from benchmarks.session import create_work_directory, print_line, stop_at_end
from benchmarks.subjects import SharedServers, UpCommand
from gateway.simulator.wire import estimate_tokens

_COUNTS = (10, 100, 500)
_OWN_TOOLS = 8
_TITLES = ("Buy 3 eggs", "Buy 14 apples", "Read 120 pages", "Walk 5 km", "Call 2 friends")
_TASK = "Add up the numbers in the titles of my pending tasks"
_ANSWER = "add up to 144"
_CONFIG = Path(__file__).parent.parent / "mcp.json"
_LIMIT_SECONDS = 120.0


class ServedTools(UpCommand):
    """All servers of `up`, with the tools of one more server."""

    def __init__(self, shared: SharedServers, url: str, count: int) -> None:
        super().__init__(shared)
        self.name = f"up-{count}"
        servers: dict[str, Any] = json.loads(_CONFIG.read_text())["mcpServers"]
        self._config = shared.directory / f"{self.name}.json"
        self._config.write_text(json.dumps({"mcpServers": servers | {"other": {"url": url}}}))

    def get_environment(self) -> dict[str, str]:
        data = {"GATEWAY_DATA_DIR": str(self.shared.directory / self.name), "CONSOLE": "off"}
        return super().get_environment() | data | {"MCP_CONFIG": str(self._config)}


@dataclass(frozen=True)
class Cost:
    """Tokens of the prompts of a turn, and its model calls."""

    tokens: int
    calls: int


def main() -> None:
    print_line("| tools | all schemas | with find_tools | a program | program / all | program / find_tools |")
    print_line("|---|---|---|---|---|---|")
    with create_work_directory() as directory:
        for count in _COUNTS:
            asyncio.run(_compare(directory, count))


async def _compare(directory: Path, count: int) -> None:
    with stop_at_end() as running:
        shared = SharedServers(directory, "", "")
        servers = ToolServers(shared, 1, count - _OWN_TOOLS)
        running.append(servers)
        await servers.start()
        gateway = ServedTools(shared, f"http://127.0.0.1:{servers.port}/0/mcp", count)
        running.append(gateway)
        await gateway.start()
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}") as session,
            asyncio.timeout(_LIMIT_SECONDS),
        ):
            while len(await _list_tools(session)) < count:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.1)
            for title in _TITLES:
                await _chat(session, f"Add a task: {title}")
            all_schemas = await _compute_all_schemas(session)
            searched, program = await _solve(session, code="off"), await _solve(session, code="only")
    columns = [f"{cost.tokens:,} tokens, {cost.calls} calls" for cost in (all_schemas, searched, program)]
    ratios = [f"{program.tokens / cost.tokens:.3f}" for cost in (all_schemas, searched)]
    print_line(f"| {count} | {' | '.join((*columns, *ratios))} |")


async def _compute_all_schemas(session: aiohttp.ClientSession) -> Cost:
    """Compute the cost if each request had the definitions of all tools."""
    needed = ("list_tasks", "calculator")
    sent = await _solve(session, tools=list(needed), code="off")
    definitions = [
        {
            "type": "function",
            "function": {name: tool[key] for name, key in (("name", "name"), ("description", "description"))}
            | {"parameters": tool["input_schema"]},
        }
        for tool in await _list_tools(session)
    ]
    few = [item for item in definitions if item["function"]["name"] in needed]
    extra = estimate_tokens(json.dumps(definitions)) - estimate_tokens(json.dumps(few))
    return Cost(sent.tokens + sent.calls * extra, sent.calls)


async def _solve(session: aiohttp.ClientSession, **options: Any) -> Cost:
    answer = await _chat(session, _TASK, **options)
    assert _ANSWER in answer["response"], answer["response"]
    return Cost(answer["usage"]["prompt_tokens"], answer["steps"])


async def _list_tools(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    async with session.get("/api/v1/tools") as response:
        return (await response.json())["tools"]


async def _chat(session: aiohttp.ClientSession, prompt: str, **options: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": prompt}], **options}
    async with session.post("/api/v1/chat", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


if __name__ == "__main__":
    main()
