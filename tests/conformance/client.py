"""The client that the conformance suite drives: the gateway's own toolbox."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx2

from gateway.config import Settings
from gateway.domain.errors import GatewayError
from gateway.domain.messages import (
    Answer,
    AuthorizationRequest,
    Grant,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    ToolSpec,
)
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.toolbox import McpToolbox

_NOBODY = UUID(int=0)
ADA = Principal("ada", role="admin")


class MemoryGrants:
    """Grants and sign-ins in memory: the suite starts a process for each scenario."""

    def __init__(self) -> None:
        self.grant: Grant | None = None
        self._logins: dict[str, AuthorizationRequest] = {}
        self._states: dict[str, str] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._outcomes: dict[str, str] = {}

    async def get(self, server: str, owner: str, url: str) -> Grant | None:
        return self.grant

    @asynccontextmanager
    async def changing(self, server: str, owner: str, url: str) -> AsyncGenerator["MemoryGrants"]:
        yield self

    async def forget(self, server: str, owner: str, url: str, *, by: str) -> None:
        self.grant = None

    async def offer(self, ticket: str, login: AuthorizationRequest) -> None:
        self._logins[ticket] = login

    async def offered(self, ticket: str) -> AuthorizationRequest | None:
        return self._logins.get(ticket)

    async def await_callback(self, ticket: str, state: str) -> None:
        self._states[ticket] = state

    async def call_back(self, ticket: str, state: str, answer: dict[str, Any]) -> bool:
        self._answers[ticket] = answer
        return self._states.get(ticket) == state

    async def callback(self, ticket: str, state: str) -> dict[str, Any] | None:
        return self._answers.get(ticket) if self._states.get(ticket) == state else None

    async def end(self, ticket: str, outcome: str) -> None:
        self._outcomes[ticket] = outcome

    async def outcome(self, ticket: str) -> str | None:
        return self._outcomes.get(ticket)


async def sign_in(toolbox: McpToolbox, url: str) -> None:
    """What a person's browser does."""
    ticket = parse_qs(urlsplit(url).query)["ticket"][0]
    async with httpx2.AsyncClient(timeout=30) as browser:
        answer = await browser.get(await toolbox.sign_in.begin(ticket))
    back = parse_qs(urlsplit(answer.headers["Location"]).query)
    await toolbox.sign_in.finish(ticket, {name: values[0] for name, values in back.items()})


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
    answers: list[StoredQuestion] = []
    for _ in range(5):
        result = await toolbox.call(spec, arguments, principal=ADA, observer=Person(), answers=answers)
        if not isinstance(result, PendingInput):
            return
        for question in result.questions:
            if question.login and question.url:
                await sign_in(toolbox, question.url)
        person = Person()
        answers = [
            StoredQuestion(id=_NOBODY, call_id="", question=q, state=result.state, answer=await person.ask(q))
            for q in result.questions
        ]


async def play(url: str, context: dict[str, Any]) -> None:
    """One scenario: connect, sign in where that is wanted, call every tool."""
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    given = {key: context[key] for key in ("client_id", "client_secret") if context.get(key)}
    server = ServerConfig.model_validate({"name": "suite", "url": url, "prefix": "", "oauth": given or None})
    toolbox = McpToolbox([server], settings, grants=MemoryGrants())
    await toolbox.connect_servers()
    try:
        await toolbox.wait_until_connected(10)
        if (entrance := toolbox.find("sign_in")) is not None:
            await call(toolbox, entrance, {})
            await toolbox.wait_until_connected(10)
        wanted = context.get("toolCalls")
        for spec in toolbox.specs():
            given = [each["arguments"] for each in wanted or () if each["name"] == spec.tool]
            await asyncio.gather(
                *(call(toolbox, spec, each) for each in given or ([] if wanted else [sample(spec, toolbox)]))
            )
    finally:
        await toolbox.disconnect_servers()


@asynccontextmanager
async def on_call(path: str) -> AsyncGenerator[None]:
    """Plays the scenario of each `dial` at this Unix socket."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(await reader.readline())
        try:
            await play(asked["url"], asked["context"])
        except GatewayError:  # some scenarios want a sign-in refused
            writer.write(b"1")
        else:
            writer.write(b"0")
        finally:
            writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield
