"""What endpoints get: the parts that `app.py` built, and who is calling."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from fastapi import Depends, Request
from starlette.types import Receive, Scope, Send

from gateway.agent.service import TurnService
from gateway.api.rate_limit.limiter import RateLimiter
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY, Authenticator
from gateway.common.concurrency import TaskRegistry
from gateway.config import Settings
from gateway.domain.errors import ClientGone
from gateway.domain.messages import Principal
from gateway.ports.model import Model, Models
from gateway.ports.servers import ServerAdmin
from gateway.ports.tools import Toolbox
from gateway.store.api_keys import KeyStore
from gateway.store.audit import AuditStore
from gateway.store.bus import PostgresBus
from gateway.store.conversations import ConversationStore
from gateway.store.database import Database
from gateway.store.history import HistoryStore
from gateway.store.mcp_servers import ServerStore
from gateway.store.questions import InputStore
from gateway.store.turns import TurnStore
from gateway.store.usage import UsageStore
from gateway.store.usage_report import UsageReports

T = TypeVar("T")


class Endpoint(Protocol):
    """An ASGI application with open streams of its own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def stop_listening(self) -> None: ...


@dataclass(frozen=True)
class State:
    """The parts of a running gateway."""

    settings: Settings
    auth: Authenticator
    keys: KeyStore
    rates: RateLimiter
    turn_service: TurnService
    turns: TurnStore
    inputs: InputStore
    conversations: ConversationStore
    history: HistoryStore
    usage_reports: UsageReports
    servers: ServerStore
    registry: ServerAdmin
    bus: PostgresBus
    mcp: Endpoint
    toolbox: Toolbox
    models: Models
    model: Model
    database: Database
    usage: UsageStore
    audit: AuditStore
    tasks: TaskRegistry
    started_at: float = field(default_factory=time.monotonic)

    async def stop(self, grace: float) -> None:
        """Tell every reader, and leave what has not ended within `grace` seconds to others."""
        self.mcp.stop_listening()
        await self.turn_service.stop(grace)


def state_of(request: Request) -> State:
    return request.app.state.gateway


def turn_service(request: Request) -> TurnService:
    return state_of(request).turn_service


def principal_of(request: Request) -> Principal:
    """Whom the guard has let in, with the headers that MCP servers want passed on."""
    principal: Principal = request.scope[PRINCIPAL_SCOPE_KEY]
    if not (wanted := state_of(request).toolbox.forwarded_headers()):
        return principal
    headers = {name: value for name in wanted if (value := request.headers.get(name)) is not None}
    return msgspec.structs.replace(principal, headers=headers)


async def get_state(request: Request) -> State:
    """A coroutine, as all dependencies here: FastAPI sends plain functions through a thread, at 0.2 ms each. To resolve
    one still costs as much as a token: the chat routes that are called most call `state_of` and `principal_of`."""
    return state_of(request)


async def get_principal(request: Request) -> Principal:
    return principal_of(request)


StateDep = Annotated[State, Depends(get_state)]
PrincipalDep = Annotated[Principal, Depends(get_principal)]


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up. The request's body must have been read.

    Raises:
        ClientGone: it hung up.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
