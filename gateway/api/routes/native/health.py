"""`/health`: liveness check. `/ready`: readiness check."""

import asyncio
import time

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from gateway import __version__
from gateway.agent.service import TurnService
from gateway.api.deps import (
    ModelHealthDep,
    SandboxDep,
    SettingsDep,
    StartTimeDep,
    StorageHealthDep,
    TasksDep,
    ToolboxDep,
    TurnServiceDep,
)
from gateway.api.routes.native.tools import ServerView
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY
from gateway.common.concurrency import TaskRegistry
from gateway.config import Settings
from gateway.domain.messages import Principal
from gateway.ports.code import Sandbox
from gateway.ports.tools import Toolbox
from gateway.store.health import StorageHealth
from gateway_runtime.cached_value import CachedValue

router = APIRouter(tags=["health"])
_CHECKS = ("database", "model", "background_tasks", "programs")


class Health(BaseModel):
    """State of the process.

    `conversations` is the number of stored conversations, or null if the database does not answer.
    `conversations_in_memory` is its legacy name.
    """

    status: str
    version: str
    uptime_seconds: float
    running_turns: int
    conversations: int | None
    conversations_in_memory: int | None


class Check(BaseModel):
    """Result of a check.

    `reason` is null if `ok` is true, and for callers who are not admins.
    """

    ok: bool
    reason: str | None = None


class Readiness(BaseModel):
    """Readiness of this worker.

    `programs` says whether models can write programs. `status` is `ready`, `degraded` (the model or an MCP server is
    unavailable) or `unavailable` (the database does not accept writes, a background task that every turn needs has
    failed, or the worker is stopping). Only admins see reasons and MCP servers.
    """

    status: str
    database: Check
    model: Check
    background_tasks: Check
    programs: Check
    simulated: bool
    mcp_servers: list[ServerView]


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Check that the process is alive")
async def health(storage: StorageHealthDep, turn_service: TurnServiceDep, started_at: StartTimeDep) -> Health:
    """Answer 200 while the process runs.

    The database need not be reachable. The number of conversations may be a second old.
    """
    conversations = await storage.count_conversations()
    return Health(
        status="healthy",
        version=__version__,
        uptime_seconds=round(time.monotonic() - started_at, 1),
        running_turns=turn_service.running_turns,
        conversations=conversations,
        conversations_in_memory=conversations,
    )


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Check that the worker is ready", responses={503: {"model": Readiness}})
async def ready(
    request: Request,
    response: Response,
    storage: StorageHealthDep,
    model_health: ModelHealthDep,
    toolbox: ToolboxDep,
    turn_service: TurnServiceDep,
    tasks: TasksDep,
    settings: SettingsDep,
    sandbox: SandboxDep,
) -> Readiness:
    """Answer 503 if turns cannot be stored or run.

    If only the model or an MCP server is unavailable, the status code is 200. The state of the database may be a second
    old, that of the model ten seconds. Only admins, with their credential, see reasons, and the MCP servers that it
    permits.
    """
    readiness = await get_readiness(storage, model_health, toolbox, turn_service, tasks, settings, sandbox)
    if readiness.status == "unavailable":
        response.status_code = 503
    return limit_details(readiness, request.scope.get(PRINCIPAL_SCOPE_KEY))


async def get_readiness(
    storage: StorageHealth,
    model_health: CachedValue[str | None],
    toolbox: Toolbox,
    turn_service: TurnService,
    tasks: TaskRegistry,
    settings: Settings,
    sandbox: Sandbox,
) -> Readiness:
    """Check everything that turns need. The result has details for admins."""
    database, model = await asyncio.gather(storage.find_problem(), model_health.get())
    servers = [ServerView.model_validate(server, from_attributes=True) for server in toolbox.list_server_statuses()]
    dependencies_up = model is None and all(server.state in ("up", "disabled") for server in servers)
    down_tasks = tasks.down_vital_tasks
    is_unavailable = database is not None or down_tasks or turn_service.is_stopping
    return Readiness(
        status="unavailable" if is_unavailable else "ready" if dependencies_up else "degraded",
        database=Check(ok=database is None, reason=database),
        model=Check(ok=model is None, reason=model),
        background_tasks=Check(ok=not down_tasks, reason=f"failed: {', '.join(down_tasks)}" if down_tasks else None),
        programs=Check(ok=sandbox.problem is None, reason=sandbox.problem),
        simulated=settings.groq_simulated,
        mcp_servers=servers,
    )


def is_admin(principal: Principal | None) -> bool:
    """Return whether a caller sees reasons and MCP servers."""
    is_unbound_admin = principal is not None and principal.role == "admin" and principal.toolset is None
    return principal is not None and is_unbound_admin and principal.has_scope("admin")


def limit_details(readiness: Readiness, principal: Principal | None) -> Readiness:
    """Leave out what a caller may not see.

    For all but admins these are reasons, and the names, addresses and errors of MCP servers; for an admin whose key is
    limited to some servers, the other servers.
    """
    if principal is not None and is_admin(principal):
        servers = [server for server in readiness.mcp_servers if principal.can_use_server(server.name)]
        return readiness.model_copy(update={"mcp_servers": servers})
    checks = {name: Check(ok=getattr(readiness, name).ok) for name in _CHECKS}
    return readiness.model_copy(update={**checks, "mcp_servers": []})
