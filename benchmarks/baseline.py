"""The obvious way to build it, without a mistake in it: FastAPI, the groq SDK's objects, sse-starlette, an ORM.

Every chunk is the SDK's pydantic object, every turn one session and one commit, every tool turn one MCP client of its
own. The database is the same embedded Postgres that the gateway uses.
"""

import argparse
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import APIKeyHeader
from groq import AsyncGroq
from mcp import Client
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession
from sse_starlette import EventSourceResponse

from benchmarks.upstream import MODEL
from gateway_runtime import embedded_postgres


class ChatLog(SQLModel, table=True):
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    prompt: str
    response: str
    model_name: str
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Message(BaseModel):
    role: str
    content: str


class Chat(BaseModel):
    messages: list[Message]
    tools: bool = False


class Part:
    """The server's parts, for one process's life."""

    def __init__(self, database_url: str, groq_url: str, tools_url: str, api_key: str) -> None:
        self.engine = create_async_engine(database_url, pool_size=20, max_overflow=20)
        self.sessions = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)
        self.groq = AsyncGroq(api_key="bench", base_url=groq_url)
        self.tools_url = tools_url
        self.api_key = api_key

    async def keep(self, prompt: str, response: str) -> None:
        async with self.sessions() as session:
            session.add(ChatLog(prompt=prompt, response=response, model_name=MODEL))
            await session.commit()


async def answer(chat: Chat, part: Part) -> AsyncGenerator[dict[str, str]]:
    """The turn's events: model, tools, model again, until it stands; then it is kept."""
    messages: list[Any] = [message.model_dump() for message in chat.messages]
    text = ""
    async with _tools(chat, part) as client:
        offered = await _offered(client) if client else None
        while True:
            calls: list[Any] = []
            request: dict[str, Any] = {"tools": offered} if offered else {}
            stream = await part.groq.chat.completions.create(model=MODEL, messages=messages, stream=True, **request)
            async for chunk in stream:
                delta = chunk.choices[0].delta
                if delta.content:
                    text += delta.content
                    yield {"event": "text.delta", "data": json.dumps({"text": delta.content})}
                calls += delta.tool_calls or []
            if not calls or client is None:
                break
            messages.append({"role": "assistant", "tool_calls": [call.model_dump() for call in calls]})
            for call in calls:
                result = await client.call_tool(call.function.name, json.loads(call.function.arguments))
                said = "\n".join(getattr(block, "text", "") for block in result.content)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": said})
                yield {"event": "tool.result", "data": json.dumps({"call_id": call.id, "content": said})}
    await part.keep(chat.messages[-1].content, text)
    yield {"data": "[DONE]"}


@asynccontextmanager
async def _tools(chat: Chat, part: Part) -> AsyncIterator[Client | None]:
    if not chat.tools:
        yield None
        return
    async with Client(part.tools_url) as client:
        yield client


async def _offered(client: Client) -> list[dict[str, Any]]:
    listed = await client.list_tools()
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
        }
        for tool in listed.tools
    ]


def create_app(part: Part) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with part.engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.tables["chatlog"].create, checkfirst=True)
        yield
        await part.engine.dispose()

    app = FastAPI(lifespan=lifespan)

    def check(key: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> None:
        if key != part.api_key:
            raise HTTPException(401)

    @app.post("/chat/stream", dependencies=[Depends(check)])
    async def chat_stream(chat: Chat) -> EventSourceResponse:
        return EventSourceResponse(answer(chat, part))

    @app.post("/chat", dependencies=[Depends(check)])
    async def chat_plain(chat: Chat) -> dict[str, Any]:
        messages: list[Any] = [message.model_dump() for message in chat.messages]
        completion = await part.groq.chat.completions.create(model=MODEL, messages=messages)
        text = completion.choices[0].message.content or ""
        await part.keep(chat.messages[-1].content, text)
        return {"response": text}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    for name in ("--upstream", "--tools", "--data", "--key"):
        arguments.add_argument(name, required=True)
    given = arguments.parse_args()
    postgres = embedded_postgres.start_or_attach(Path(given.data))
    try:
        part = Part(postgres.build_url(), given.upstream, given.tools, given.key)
        uvicorn.run(create_app(part), port=given.port, log_level="warning", access_log=False, backlog=4096)
    finally:
        postgres.stop_if_started_here()


if __name__ == "__main__":
    main()
