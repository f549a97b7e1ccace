"""Starts the turns that hosts follow as tasks."""

from collections import Counter
from typing import Any, cast
from uuid import UUID

import mcp.types as t
from mcp import MCPError
from msgspec.structs import replace
from pydantic import ValidationError

from gateway.agent.service import TurnService
from gateway.api.mcp.ask_agent import ASK_AGENT, make_agent_error, make_agent_request, may_ask_agent
from gateway.api.mcp.host import Context, get_principal
from gateway.api.mcp.schemas import make_server_key, parse_idempotency_key, to_call_result
from gateway.api.mcp.tasks.messages import (
    TASK_VERSION,
    declares_tasks,
    describe_task,
    dump_call_result,
    is_modern_host,
    parse_ttl,
)
from gateway.config import Settings
from gateway.domain.direct_calls import DirectCall
from gateway.domain.errors import Conflict, GatewayError, InvalidRequest, RateLimited
from gateway.domain.messages import JsonObject, Message, Principal, ToolSpec, TurnRequest
from gateway.ports.tools import Toolbox
from gateway.store.lists.mcp_tasks import TASK_ECHO_KEY, McpTaskStore


class TaskStarter:
    """Starts a turn for a call that shall be a task.

    A user may have `mcp_max_user_tasks` that have not ended.
    """

    def __init__(self, settings: Settings, service: TurnService, toolbox: Toolbox, tasks: McpTaskStore) -> None:
        self._settings = settings
        self._service = service
        self._toolbox = toolbox
        self._tasks = tasks
        self._starting: Counter[str] = Counter()

    def find_task_tool(self, ctx: Context) -> ToolSpec | None:
        """Return the tool of a call that shall be a task.

        None: the call shall be none.

        Raises:
            MCPError: the host asks for a task, and the tool does not run as one.
        """
        raw, is_modern = ctx.params or {}, is_modern_host(ctx)
        if is_modern and (not declares_tasks(raw) or raw.get("requestState") is not None):
            return None
        if not is_modern and (ctx.protocol_version != TASK_VERSION or raw.get("task") is None):
            return None
        spec = self._find_permitted_tool(raw.get("name"), get_principal(ctx))
        if spec is None or spec.runs_as_task:
            return spec
        if is_modern:
            return None
        raise MCPError(t.METHOD_NOT_FOUND, f"The tool {spec.name[:200]} does not run as a task.")

    def _find_permitted_tool(self, name: Any, principal: Principal) -> ToolSpec | None:
        if not isinstance(name, str) or principal.role == "viewer":
            return None  # the call is refused
        if name == ASK_AGENT.name and may_ask_agent(principal):
            return ASK_AGENT
        spec = self._toolbox.find_tool(name, principal)
        return spec if spec is not None and principal.can_use_tool(spec) else None

    async def start_task(self, ctx: Context, spec: ToolSpec) -> JsonObject | None:
        """Start the turn of a call, and name its task.

        None: the call's parameters do not fit the protocol.

        Raises:
            MCPError: the turn cannot be started, and the host's protocol has no result for that.
        """
        raw, principal, is_modern = ctx.params or {}, get_principal(ctx), is_modern_host(ctx)
        max_ttl = self._settings.mcp_task_ttl
        ttl_ms = int(1000 * max_ttl) if is_modern else parse_ttl(raw["task"], max_ttl)
        try:
            params = t.CallToolRequestParams.model_validate(raw, by_name=False)
        except ValidationError:
            return None
        try:
            task_id, ttl_ms = await self._start_turn(params, spec, principal, ttl_ms)
        except GatewayError as error:
            if not is_modern:
                code = t.INVALID_PARAMS if isinstance(error, InvalidRequest) else t.INTERNAL_ERROR
                raise MCPError(code, error.message) from None
            return dump_call_result(to_call_result(*make_agent_error(error))) | {"resultType": "complete"}
        task = describe_task(task_id, "working", None, ttl_ms, is_modern=is_modern)
        return {**task, "resultType": "task"} if is_modern else {"task": task}

    async def _start_turn(
        self, params: t.CallToolRequestParams, spec: ToolSpec, principal: Principal, ttl_ms: int
    ) -> tuple[UUID, int]:
        if spec is ASK_AGENT:
            request = make_agent_request(params, principal, self._settings.gateway_tools)
        else:
            request = _make_call_request(params, spec, principal)
        mark = {"ttl": ttl_ms, "tool": spec.name}
        request = replace(request, on_disconnect="continue", echo={TASK_ECHO_KEY: mark})
        self._starting[principal.user] += 1
        try:
            await self._check_count(principal.user)
            turn = await self._service.start_turn(request, principal)
        finally:
            self._starting[principal.user] -= 1
            self._starting += Counter()  # drops users without any
        started = turn.echo.get(TASK_ECHO_KEY)
        if not isinstance(started, dict) or cast("JsonObject", started).get("tool") != spec.name:
            raise Conflict("The idempotency key belongs to another call.")
        return turn.id, cast("JsonObject", started)["ttl"]

    async def _check_count(self, user: str) -> None:
        limit = self._settings.mcp_max_user_tasks
        if await self._tasks.count_open(user, limit) + self._starting[user] > limit:
            raise RateLimited(f"You have {limit} tasks that have not ended, which is the maximum (MCP_MAX_USER_TASKS).")


def _make_call_request(params: t.CallToolRequestParams, spec: ToolSpec, principal: Principal) -> TurnRequest:
    key = parse_idempotency_key(params)
    server_key = None if key is None else make_server_key(params, principal)
    return TurnRequest(
        messages=(Message("user", f"Call of the tool {spec.name}"),),
        tools=(spec.name,),
        idempotency_key=key,
        direct_call=DirectCall(spec.name, spec.server, params.arguments or {}, server_key),
    )
