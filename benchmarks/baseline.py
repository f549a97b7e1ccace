"""Straightforward implementation to compare with.

It consists of FastAPI, the groq SDK, sse-starlette and an ORM. Every chunk is a pydantic object of the SDK, every turn
uses one session and one commit, and every tool turn opens an MCP client. The database is the same embedded Postgres
that the gateway uses.
"""

import argparse
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import httpx2
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import APIKeyHeader
from groq import AsyncGroq
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
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


class ChatBody(BaseModel):
    messages: list[Message]
    tools: bool = False


class Services:
    """Clients and database of the server."""

    def __init__(self, database_url: str, groq_url: str, tools_url: str, tools_token: str, api_key: str) -> None:
        self.engine = create_async_engine(database_url, pool_size=20, max_overflow=20)
        self.sessions = async_sessionmaker(self.engine, class_=AsyncSession, expire_on_commit=False)
        self.groq = AsyncGroq(api_key="bench", base_url=groq_url)
        self.tools_url = tools_url
        self.tools_token = tools_token
        self.api_key = api_key

    async def save_turn(self, prompt: str, response: str) -> None:
        async with self.sessions() as session:
            session.add(ChatLog(prompt=prompt, response=response, model_name=MODEL))
            await session.commit()


async def stream_turn(chat: ChatBody, services: Services) -> AsyncGenerator[dict[str, str]]:
    """Stream the events of a turn, then store it.

    The model is called until it asks for no tool.
    """
    messages: list[Any] = [message.model_dump() for message in chat.messages]
    text = ""
    async with _open_tool_client(chat, services) as client:
        functions = await _list_functions(client) if client else None
        while True:
            calls: list[Any] = []
            request: dict[str, Any] = {"tools": functions} if functions else {}
            stream = await services.groq.chat.completions.create(model=MODEL, messages=messages, stream=True, **request)
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
                content = "\n".join(getattr(block, "text", "") for block in result.content)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
                yield {"event": "tool.result", "data": json.dumps({"call_id": call.id, "content": content})}
    await services.save_turn(chat.messages[-1].content, text)
    yield {"data": "[DONE]"}


@asynccontextmanager
async def _open_tool_client(chat: ChatBody, services: Services) -> AsyncIterator[Client | None]:
    if not chat.tools:
        yield None
        return
    headers = {"Authorization": f"Bearer {services.tools_token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http_client,
        Client(streamable_http_client(services.tools_url, http_client=http_client)) as client,
    ):
        yield client


async def _list_functions(client: Client) -> list[dict[str, Any]]:
    listing = await client.list_tools()
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.input_schema},
        }
        for tool in listing.tools
    ]


def create_app(services: Services) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with services.engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.tables["chatlog"].create, checkfirst=True)
        yield
        await services.engine.dispose()

    app = FastAPI(lifespan=lifespan)

    def check_key(key: Annotated[str | None, Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]) -> None:
        if key != services.api_key:
            raise HTTPException(401)

    @app.post("/chat/stream", dependencies=[Depends(check_key)])
    async def chat_stream(chat: ChatBody) -> EventSourceResponse:
        return EventSourceResponse(stream_turn(chat, services))

    @app.post("/chat", dependencies=[Depends(check_key)])
    async def chat_once(chat: ChatBody) -> dict[str, Any]:
        messages: list[Any] = [message.model_dump() for message in chat.messages]
        completion = await services.groq.chat.completions.create(model=MODEL, messages=messages)
        text = completion.choices[0].message.content or ""
        await services.save_turn(chat.messages[-1].content, text)
        return {"response": text}

    @app.get("/ready")
    async def report_ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    for name in ("--upstream", "--tools", "--data", "--key"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    postgres = embedded_postgres.start_or_attach(Path(options.data))
    try:
        services = Services(
            postgres.build_url(), options.upstream, options.tools, os.environ["TOOLS_TOKEN"], options.key
        )
        uvicorn.run(create_app(services), port=options.port, log_level="warning", access_log=False, backlog=4096)
    finally:
        postgres.stop_if_started_here()


if __name__ == "__main__":
    main()
