"""Clients of `/definitions`, and servers that defined tools call."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web

from gateway.mcp_client.caller_identity import TokenSigner, sign_with_secret
from tests.stack import SECRET
from tests.tools_server.conftest import serve_web
from tools_server.auth import DEFINE_SCOPE


@dataclass
class Api:
    """A server that records its requests, and answers with `answer`."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    answer: Any = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.requests.append(
            {
                "method": request.method,
                "target": request.raw_path,
                "headers": dict(request.headers),
                "body": raw.decode(errors="replace"),
                "raw": raw,
            }
        )
        if callable(self.answer):
            response: Any = self.answer(request)
            return response
        return web.json_response({"ok": True} if self.answer is None else self.answer)


@asynccontextmanager
async def serve_api() -> AsyncGenerator[Api]:
    api = Api()
    async with serve_web(api.handle) as url:
        api.url = url
        yield api


class DefinitionClient:
    """An admin at the tool server's own routes."""

    def __init__(self, address: str, session: aiohttp.ClientSession, scope: str | None = DEFINE_SCOPE) -> None:
        self.address = address
        self._session = session
        self._signer = TokenSigner(partial(sign_with_secret, SECRET), "tools-server", scope)

    async def send(self, method: str, path: str = "", body: Any = None, **headers: str) -> tuple[int, Any]:
        token = {"Authorization": f"Bearer {self._signer.get_token('ada')}"}
        url = f"{self.address}/definitions{path}"
        async with self._session.request(method, url, json=body, headers=token | headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def define(self, name: str, url: str, *, publish: bool = True, **fields: Any) -> dict[str, Any]:
        """Make a definition, and publish it."""
        body = {"name": name, "description": "A tool of a test.", "url": url, **fields}
        status, made = await self.send("POST", "", body)
        assert status == 201, made
        if publish:
            status, made = await self.send("POST", f"/{name}/publish", {})
            assert status == 200, made
        return made


@asynccontextmanager
async def open_client(address: str, scope: str | None = DEFINE_SCOPE) -> AsyncGenerator[DefinitionClient]:
    async with aiohttp.ClientSession() as session:
        yield DefinitionClient(address, session, scope)


def arguments(*required: str, **properties: Any) -> dict[str, Any]:
    """A schema of arguments; those without a type are texts."""
    schemas = {name: schema or {"type": "string"} for name, schema in properties.items()}
    return {"type": "object", "properties": schemas, "required": list(required)}
