"""A host of `/mcp` that knows the tasks of both protocol eras."""

import itertools
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from gateway.domain.messages import JsonObject
from tests.eventually import eventually

META = "io.modelcontextprotocol/"
TASKS = "io.modelcontextprotocol/tasks"
ENDED = ("completed", "failed", "cancelled")


class HostError(Exception):
    """A JSON-RPC error that the gateway answered with."""

    def __init__(self, error: JsonObject) -> None:
        super().__init__(str(error))
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: Any = error.get("data")


class TaskHost:
    """Sends requests, and answers those of the gateway with `answer`."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, *, modern: bool, headers: Mapping[str, str], declares: bool
    ) -> None:
        self.modern = modern
        self.requests: list[JsonObject] = []
        """Requests of the gateway."""
        self.answer: JsonObject = {"action": "accept", "content": {}}
        self._session = session
        self._url = url
        self._ids = itertools.count(1)
        self._version = "2026-07-28" if modern else "2025-11-25"
        self._headers = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": self._version,
            **headers,
        }
        self._capabilities: JsonObject = {"elicitation": {"form": {}, "url": {}}}
        if modern and declares:
            self._capabilities["extensions"] = {TASKS: {}}

    async def initialize(self) -> JsonObject:
        """Open a legacy session."""
        info = {"name": "host", "version": "1"}
        params = {"protocolVersion": self._version, "capabilities": self._capabilities, "clientInfo": info}
        result = await self.send("initialize", params)
        await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, {})
        return result

    def _envelop(self, params: JsonObject) -> JsonObject:
        if not self.modern:
            return params
        meta = {
            f"{META}protocolVersion": self._version,
            f"{META}clientCapabilities": self._capabilities,
            f"{META}clientInfo": {"name": "host", "version": "1"},
        }
        return {**params, "_meta": {**meta, **params.get("_meta", {})}}

    async def send(self, method: str, params: JsonObject | None = None, **headers: str) -> JsonObject:
        """Send a request; return its result.

        Raises:
            HostError: the gateway answered with an error.
        """
        params = params or {}
        message = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": self._envelop(params)}
        routing = {"Mcp-Method": method} if self.modern else {}
        if self.modern and (name := params.get("name") or params.get("taskId")):
            routing["Mcp-Name"] = name
        answer = await self._post(message, {**routing, **headers})
        assert answer is not None
        if "error" in answer:
            raise HostError(answer["error"])
        return answer["result"]

    async def _post(self, message: JsonObject, headers: Mapping[str, str]) -> JsonObject | None:
        sent = {**self._headers, **headers}
        async with self._session.post(self._url, json=message, headers=sent) as response:
            if (name := response.headers.get("mcp-session-id")) is not None:
                self._headers["Mcp-Session-Id"] = name
            if response.content_type != "text/event-stream":
                text = await response.text()
                return json.loads(text) if text and "id" in message else None
            async for received in read_messages(response):
                if "method" in received and "id" in received:
                    self.requests.append(received)
                    await self._post({"jsonrpc": "2.0", "id": received["id"], "result": self.answer}, {})
                elif received.get("id") == message.get("id"):
                    return received
        return None

    @asynccontextmanager
    async def listen(self, params: JsonObject | None = None) -> AsyncGenerator[AsyncGenerator[JsonObject]]:
        """Open the stream of notifications."""
        if not self.modern:
            async with self._session.get(self._url, headers=self._headers) as response:
                yield read_messages(response)
            return
        method = "subscriptions/listen"
        message = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": self._envelop(params or {})}
        headers = {**self._headers, "Mcp-Method": method}
        async with self._session.post(self._url, json=message, headers=headers) as response:
            yield read_messages(response)

    # --- tasks

    async def call(self, name: str, arguments: JsonObject | None = None, **params: Any) -> JsonObject:
        """Call a tool as a task; return the result."""
        augmented = {} if self.modern else {"task": {"ttl": 600_000}}
        return await self.send("tools/call", {"name": name, "arguments": arguments or {}, **augmented, **params})

    async def start(self, name: str, arguments: JsonObject | None = None, **params: Any) -> str:
        """Call a tool as a task; return the task's id."""
        result = await self.call(name, arguments, **params)
        task = result if self.modern else result["task"]
        assert task["status"] == "working", result
        assert not self.modern or task["resultType"] == "task"
        return task["taskId"]

    async def get(self, task_id: str) -> JsonObject:
        return await self.send("tasks/get", {"taskId": task_id})

    async def wait(self, task_id: str, *statuses: str) -> JsonObject:
        """Poll until the task has one of these statuses, or has ended."""

        async def poll() -> JsonObject | None:
            task = await self.get(task_id)
            return task if task["status"] in (statuses or ENDED) else None

        task = await eventually(poll)
        assert task is not None
        return task

    async def fetch(self, task_id: str) -> JsonObject:
        """Return the result of a task that ends."""
        if not self.modern:
            return await self.send("tasks/result", {"taskId": task_id})
        task = await self.wait(task_id)
        if "error" in task:
            raise HostError(task["error"])
        return task["result"]


async def read_messages(response: aiohttp.ClientResponse) -> AsyncGenerator[JsonObject]:
    """Read the JSON-RPC messages of an event stream."""
    async for line in response.content:
        if line.startswith(b"data:") and (text := line[5:].strip()):
            yield json.loads(text)


@asynccontextmanager
async def open_host(
    gateway: Any, *, modern: bool, headers: Mapping[str, str] | None = None, path: str = "/mcp", declares: bool = True
) -> AsyncGenerator[TaskHost]:
    """Connect a host to anything with a `base_url`."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session:
        url = f"{gateway.base_url}{path}"
        host = TaskHost(session, url, modern=modern, headers=headers or {}, declares=declares)
        if not modern:
            await host.initialize()
        yield host
