"""A running gateway as the client of conformance scenarios."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.conformance.client import build_client_entry, make_value
from tests.stack import Gateway, Stream

_MAX_ROUNDS = 8
_CONNECT_SECONDS, _POLL_SECONDS = 60, 0.2
_SCENARIOS_AT_ONCE = 4
_LAST_EVENTS = ("turn.completed", "turn.failed", "turn.cancelled")


class SignInFailed(Exception):
    """A page of the sign-in reports a failure."""


class ApiClient:
    """Runs scenarios over the HTTP API, each with its own server.

    A server is added over the API. The file of the gateway names those with a sign-in, since only the file may permit
    internal authorization servers.
    """

    def __init__(self, gateway: Gateway, file: Path) -> None:
        self._gateway = gateway
        self._file = file
        self._entries: dict[str, Any] = {}
        self._numbers = count(1)
        self.slots = asyncio.Semaphore(_SCENARIOS_AT_ONCE)

    async def run_scenario(self, scenario: str, url: str, context: dict[str, Any]) -> None:
        """Add a server, sign in, call each tool, and remove it.

        Raises:
            SignInFailed: it refuses the sign-in.
        """
        name = f"suite-{next(self._numbers)}"
        needs_sign_in = scenario.startswith("auth/")
        if needs_sign_in:
            directory = self._file.with_name(name)
            directory.mkdir()
            entry = await build_client_entry(url, context, scenario, directory)
            self._entries[name] = {"url": url, **entry, "oauth_hosts": ["localhost", "127.0.0.1"]}
            self._write_file()
        else:
            reply = await self._gateway.post("/api/v1/mcp/servers", {"name": name, "url": url})
            assert reply.status == 201, reply.body
        try:
            await self._use_server(name, context.get("toolCalls"))
        finally:
            if needs_sign_in:
                del self._entries[name]
                self._write_file()
            else:
                await self._gateway.session.delete(f"{self._gateway.base_url}/api/v1/mcp/servers/{name}")

    def _write_file(self) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps({"mcpServers": self._entries}))
        draft.replace(self._file)

    async def _use_server(self, name: str, tool_calls: list[dict[str, Any]] | None) -> None:
        if await self._wait_until_connected(name) == "needs_auth":
            await self._call_tool(f"{name}_sign_in", {})
            await self._wait_until_connected(name)
        specs = [tool for tool in (await self._gateway.get("/api/v1/tools")).body["tools"] if tool["server"] == name]
        calls: list[tuple[str, Any]] = []
        for spec in specs:
            tool = spec["name"].removeprefix(f"{name}_")
            if tool_calls:
                calls += [(spec["name"], call["arguments"]) for call in tool_calls if call["name"] == tool]
            elif "schema" in spec["input_schema"].get("properties", {}):
                schema = next(other["input_schema"] for other in specs if other is not spec)
                calls.append((spec["name"], {"schema": schema}))
            else:
                calls.append((spec["name"], make_value(spec["input_schema"])))
        await asyncio.gather(*(self._call_tool(*call) for call in calls))

    async def _wait_until_connected(self, name: str) -> str:
        async with asyncio.timeout(_CONNECT_SECONDS):
            while True:
                servers = (await self._gateway.get("/api/v1/mcp/servers")).body["servers"]
                state = next((server["state"] for server in servers if server["name"] == name), "connecting")
                if state != "connecting":
                    return state
                await asyncio.sleep(_POLL_SECONDS)

    async def _call_tool(self, name: str, arguments: Any) -> None:
        """Call a tool in a chat, and answer its questions."""
        gateway, turn, last = self._gateway, "", 0
        for _ in range(_MAX_ROUNDS):
            if turn:
                path = f"{gateway.base_url}/api/v1/turns/{turn}/events"
                request = gateway.session.get(path, params={"after": str(last)})
            else:
                body = {"messages": [{"role": "user", "content": f"call {name} {json.dumps(arguments)}"}]}
                request = gateway.session.post(f"{gateway.base_url}/api/v1/chat/stream", json=body | {"tools": [name]})
            async with request as response:
                turn = turn or response.headers["x-turn-id"]
                async for event in Stream(response).read_events():
                    last = event.id or last
                    if event.type == "input.required":
                        await self._answer(turn, event.data)
                    elif event.type in _LAST_EVENTS:
                        return

    async def _answer(self, turn: str, question: dict[str, Any]) -> None:
        if question["kind"] == "authorization":
            await self._sign_in(question["url"])
            return
        answer = {"action": "accept", "content": make_value(question.get("schema") or {})}
        await self._gateway.post(f"/api/v1/turns/{turn}/input", {"input_id": question["input_id"], **answer})

    async def _sign_in(self, page: str) -> None:
        """Sign in like a user's browser."""
        cookies: dict[str, str] = {}
        parts = urlsplit(page)
        method, url, origin = "POST", page, f"{parts.scheme}://{parts.netloc}"
        while True:
            own = {"Origin": origin, "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
            headers = own if url.startswith(origin) else {}
            session = self._gateway.session
            async with session.request(method, url, headers=headers, allow_redirects=False) as response:
                for line in response.headers.getall("Set-Cookie", []):
                    cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
                if response.status not in (302, 303):
                    if response.status != 200:
                        raise SignInFailed(await response.text())
                    return
                method, url = "GET", response.headers["Location"]


@asynccontextmanager
async def serve_api_scenarios(path: str, client: ApiClient) -> AsyncGenerator[None]:
    """Serve a Unix socket to which `run_scenario.py` sends scenarios."""

    async def handle_scenario(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scenario = json.loads(await reader.readline())
        try:
            async with client.slots:
                await client.run_scenario(scenario["scenario"], scenario["url"], scenario["context"])
        except SignInFailed:  # some scenarios expect it
            writer.write(b"1")
        else:
            writer.write(b"0")
        finally:
            writer.close()

    async with await asyncio.start_unix_server(handle_scenario, path):
        yield
