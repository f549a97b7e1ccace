"""Run the turn of the benchmarks as a workflow of dbos.

It runs in an environment of its own (`durable_engines.py` creates it) and imports nothing of the gateway. The path of a
request chooses what is durable:

- `plain`: nothing. It shows the cost of everything but dbos.
- `steps`: each model call and each tool call is a step. Text is stored when its step is complete.
- `flush`: also the text, in a dbos stream, at most 50 ms after it was sent. The gateway promises the same.
- `token`: also the text, in a dbos stream, each token before it is sent.
"""

import argparse
import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web
from dbos import DBOS, SetWorkflowID
from mcp import Client

MODEL = "openai/gpt-oss-120b"
FLUSH_SECONDS = 0.05
STREAM_KEY = "text"

Deltas = Callable[[list[str]], Awaitable[None]]


class Worker:
    """Clients of one event loop.

    dbos runs recovered workflows in an event loop of its own.
    """

    def __init__(self, upstream: str, tools_url: str) -> None:
        self.upstream = upstream
        self.tools_url = tools_url
        self.functions: list[dict[str, Any]] = []
        self.listeners: dict[str, asyncio.Queue[bytes | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: ClientSession | None = None
        self._client: Client | None = None

    async def run(self) -> AsyncIterator[None]:
        """Keep the clients of the server's event loop open."""
        self._loop = asyncio.get_running_loop()
        async with self._open_session() as self._session, Client(self.tools_url) as self._client:
            self.functions = [
                {"type": "function", "function": {"name": tool.name, "parameters": tool.input_schema}}
                for tool in (await self._client.list_tools()).tools
            ]
            yield

    def _open_session(self) -> ClientSession:
        return ClientSession(connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None))

    def send(self, turn_id: str, event: str, **fields: Any) -> None:
        """Send an event to the connected client of a turn, if any."""
        if (queue := self.listeners.get(turn_id)) is not None:
            queue.put_nowait(f"event: {event}\ndata: {json.dumps(fields)}\n\n".encode())

    async def ask_model(self, messages: list[dict[str, Any]], tools: bool, on_deltas: Deltas) -> dict[str, Any]:
        if asyncio.get_running_loop() is self._loop and self._session is not None:
            return await self._ask_model(self._session, messages, tools, on_deltas)
        async with self._open_session() as session:
            return await self._ask_model(session, messages, tools, on_deltas)

    async def _ask_model(
        self, session: ClientSession, messages: list[dict[str, Any]], tools: bool, on_deltas: Deltas
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": MODEL, "stream": True, "messages": messages}
        if tools:
            body["tools"] = self.functions
        text, calls, buffer = "", [], b""
        # One space after each colon: the mock upstream reads requests with a regular expression.
        async with session.post(f"{self.upstream}/openai/v1/chat/completions", data=json.dumps(body)) as answer:
            async for data in answer.content.iter_any():
                *events, buffer = (buffer + data).split(b"\n\n")
                deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events if event != b"data: [DONE]"]
                calls += [call for delta in deltas for call in delta.get("tool_calls") or []]
                if texts := [delta["content"] for delta in deltas if delta.get("content")]:
                    text += "".join(texts)
                    await on_deltas(texts)
        return {"text": text, "calls": calls}

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        if asyncio.get_running_loop() is self._loop and self._client is not None:
            return await self._call_tool(self._client, name, arguments)
        async with Client(self.tools_url) as client:
            return await self._call_tool(client, name, arguments)

    async def _call_tool(self, client: Client, name: str, arguments: dict[str, Any]) -> str:
        result = await client.call_tool(name, arguments)
        return "\n".join(getattr(block, "text", "") for block in result.content)


class StreamFlusher:
    """Writes text into a dbos stream in the background."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, texts: list[str]) -> None:
        self._texts += texts
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        while self._texts:
            await asyncio.sleep(FLUSH_SECONDS)
            texts, self._texts = self._texts, []
            await DBOS.write_stream_async(STREAM_KEY, "".join(texts))

    async def finish(self) -> None:
        """Wait for all writes, and raise the error of a failed write."""
        if self._task is not None:
            await self._task


WORKER: Worker


@DBOS.step()
async def model_step(turn_id: str, messages: list[dict[str, Any]], tools: bool, mode: str) -> dict[str, Any]:
    flusher = StreamFlusher()

    async def on_deltas(texts: list[str]) -> None:
        if mode == "flush":
            flusher.add(texts)
        for text in texts:
            if mode == "token":
                await DBOS.write_stream_async(STREAM_KEY, text)
            WORKER.send(turn_id, "text.delta", text=text)

    answer = await WORKER.ask_model(messages, tools, on_deltas)
    await flusher.finish()
    return answer


@DBOS.step()
async def tool_step(name: str, arguments: dict[str, Any]) -> str:
    return await WORKER.call_tool(name, arguments)


async def run_turn(turn_id: str, prompt: str, tools: bool, mode: str) -> str:
    """Alternate between model and tools until the answer is complete."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    while True:
        answer = await model_step(turn_id, messages, tools, mode)
        if not answer["calls"]:
            return answer["text"]
        messages.append({"role": "assistant", "tool_calls": answer["calls"]})
        for call in answer["calls"]:
            function = call["function"]
            WORKER.send(turn_id, "tool.call", call_id=call["id"], tool=function["name"])
            content = await tool_step(function["name"], json.loads(function["arguments"]))
            WORKER.send(turn_id, "tool.result", call_id=call["id"], content=content)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})


@DBOS.workflow()
async def turn_workflow(turn_id: str, prompt: str, tools: bool, mode: str) -> str:
    return await run_turn(turn_id, prompt, tools, mode)


async def stream_turn(request: web.Request) -> web.StreamResponse:
    """Start a turn and stream its events to the client."""
    body, mode = await request.json(), request.match_info["mode"]
    turn_id = body.get("turn_id") or uuid.uuid4().hex
    arguments = (turn_id, body["prompt"], body["tools"], mode)
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    WORKER.listeners[turn_id] = queue
    if mode == "plain":
        task = asyncio.create_task(run_turn(*arguments))
    else:
        with SetWorkflowID(turn_id):
            handle = await DBOS.start_workflow_async(turn_workflow, *arguments)
        task = asyncio.create_task(handle.get_result())
    task.add_done_callback(lambda _: queue.put_nowait(None))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while (event := await queue.get()) is not None:
        events = [event]
        while not queue.empty() and (event := queue.get_nowait()) is not None:
            events.append(event)
        await response.write(b"".join(events))
        if event is None:
            break
    del WORKER.listeners[turn_id]
    await task
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def recover_turns(request: web.Request) -> web.Response:
    """Take over the turns of other workers. dbos's Conductor gives this order."""
    executors = await request.json()
    await asyncio.to_thread(DBOS._recover_pending_workflows, executors)
    return web.Response()


async def read_text(request: web.Request) -> web.Response:
    """Return the text that a reader of a turn's stream gets."""
    turn_id = await request.json()
    return web.Response(text="".join([text async for text in DBOS.read_stream_async(turn_id, STREAM_KEY)]))


async def report_ready(_request: web.Request) -> web.Response:
    return web.Response()


async def _run_server(port: int) -> None:
    app = web.Application()
    app.router.add_post("/recover", recover_turns)
    app.router.add_post("/read", read_text)
    app.router.add_post("/{mode}", stream_turn)
    app.router.add_get("/ready", report_ready)
    running = WORKER.run()
    await anext(running)
    runner = web.AppRunner(app, access_log=None)
    DBOS.launch()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=2048).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    for name in ("--upstream", "--tools", "--database", "--executor"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    WORKER = Worker(options.upstream, options.tools)
    DBOS(
        config={
            "name": "bench",
            "system_database_url": options.database,
            "executor_id": options.executor,
            "application_version": "bench",
            "log_level": "WARNING",
        }
    )
    uvloop.run(_run_server(options.port))
