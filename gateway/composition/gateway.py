"""The whole gateway: all parts, handed to the routes."""

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from starlette.datastructures import State
from uuid_utils.compat import uuid7

from gateway.agent.code.host_programs import HostPrograms
from gateway.agent.service import TurnService
from gateway.api.mcp.endpoint import McpEndpoint
from gateway.api.mcp.question_state import QuestionStates
from gateway.api.rate_limit.limiter import RateLimiter
from gateway.api.security.authentication import Authenticator
from gateway.common.concurrency import TaskRegistry
from gateway.common.lease import WorkerLease
from gateway.common.load import LoadMonitor, find_memory_limit
from gateway.common.timeouts import Timeouts
from gateway.composition.agent import build_agent
from gateway.composition.model_server import Llm, build_llm
from gateway.composition.pass_through import build_pass_through
from gateway.composition.storage import Store, build_storage_health, build_store
from gateway.composition.supervision import supervise
from gateway.composition.telemetry import run_telemetry
from gateway.composition.tools import Tools, build_tools
from gateway.config import Settings
from gateway.domain.bus import BusKind
from gateway.ports.servers import ServerConfig
from gateway.store.admin.audit_chain import AuditChain
from gateway.store.admin.operations import OperationsStore
from gateway.store.history import HistoryStore
from gateway.store.lists.item_deletion import ItemDeletionStore
from gateway.store.lists.mcp_tasks import McpTaskStore
from gateway.store.lists.tasks import TaskListStore
from gateway.store.lists.turn_contents import TurnContentStore
from gateway.store.usage_report import UsageReports
from gateway.wire.sse import OpenStreams
from gateway_runtime.cached_value import CachedValue

if TYPE_CHECKING:
    from gateway.observation.gauges import GaugeSources
    from gateway_runtime.telemetry.observer import Telemetry


@asynccontextmanager
async def build_gateway(
    settings: Settings,
    servers: list[ServerConfig],
    timeouts: Timeouts,
    state: State,
    telemetry: "Telemetry | None" = None,
) -> AsyncGenerator[None]:
    """Start every part; stop in reverse order.

    Sets the attributes of `state` that `api/deps.py` reads.
    """
    tasks = TaskRegistry()
    worker_id = settings.gateway_worker_id or uuid7()
    lease = WorkerLease()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(build_store(settings, timeouts, worker_id, tasks, telemetry))
        llm = await stack.enter_async_context(build_llm(settings, tasks, store.redactor, telemetry))
        tools = await stack.enter_async_context(build_tools(settings, servers, store, tasks, telemetry))
        auth = _build_authenticator(settings, timeouts, store, stack)
        rates = RateLimiter(settings)
        stack.push_async_callback(rates.close)
        load = LoadMonitor(
            max_lag_seconds=settings.shed_lag_seconds,
            max_memory_bytes=settings.shed_memory_bytes or find_memory_limit(settings.gateway_workers),
        )
        supervise(load.task, tasks, stack)
        _start_webhooks(settings, store, tasks, stack)
        agent = build_agent(settings, timeouts, worker_id, store, llm, tools, lease, tasks, load, rates, telemetry)
        turn_service = await stack.enter_async_context(agent)
        mcp = McpEndpoint(
            settings,
            turn_service,
            tools.host_toolbox,
            worker_id,
            store.database.connector.dsn,
            load,
            timeouts,
            QuestionStates(store.cipher),
            _create_host_programs(settings, tools),
            McpTaskStore(store.database),
        )
        tools.toolbox.subscribe_to_changes(mcp.notify_changes)
        await stack.enter_async_context(mcp.run_sessions())
        build_pass_through(settings, store, llm, tasks, stack, state)
        state.settings, state.auth, state.rates = settings, auth, rates
        _set_stores(state, store)
        state.turn_service = turn_service
        state.lease, state.registry, state.toolsets = lease, tools.registry, tools.toolsets
        state.mcp, state.metrics = mcp, None
        state.toolbox, state.definitions = tools.policy_toolbox, tools.definitions
        state.sandbox, state.catalog, state.model = tools.code.sandbox, llm.catalog, llm.model
        state.storage_health = build_storage_health(settings, timeouts, store, lease, stack)
        state.model_health = CachedValue(llm.model.check, timeouts.model_health)
        state.tasks, state.load, state.open_streams = tasks, load, _start_pings(tasks, stack)
        state.started_at, state.stop = time.monotonic(), partial(_stop, mcp, turn_service)
        if telemetry is not None:
            sources = _list_sources(turn_service, mcp, tools, llm, store, tasks, load)
            await stack.enter_async_context(run_telemetry(settings, telemetry, sources, store.redactor, state, tasks))
        yield


def _start_webhooks(settings: Settings, store: Store, tasks: TaskRegistry, stack: AsyncExitStack) -> None:
    """Deliver events to the configured hosts, if there are any."""
    if settings.webhook_hosts:
        from gateway.webhooks.deliverer import create_deliverer  # see docs/adr/0016

        supervise(create_deliverer(settings, store.webhooks).task, tasks, stack)


def _start_pings(tasks: TaskRegistry, stack: AsyncExitStack) -> OpenStreams:
    streams = OpenStreams()
    supervise(streams.task, tasks, stack)
    return streams


def _create_host_programs(settings: Settings, tools: Tools) -> HostPrograms:
    limits = {"max_result_chars": settings.tool_result_max_chars, "parallel_calls": settings.tool_parallelism}
    return HostPrograms(tools.policy_toolbox, tools.code, **limits)


def _list_sources(
    turn_service: TurnService,
    mcp: McpEndpoint,
    tools: Tools,
    llm: Llm,
    store: Store,
    tasks: TaskRegistry,
    load: LoadMonitor,
) -> "GaugeSources":
    """Return the parts that gauges are read from."""
    from gateway.observation.gauges import GaugeSources
    from gateway.observation.model import ObservedModel
    from gateway.observation.storage import ObservedJournal

    assert isinstance(llm.model, ObservedModel)
    assert isinstance(store.journal, ObservedJournal)
    return GaugeSources(
        turn_service=turn_service,
        mcp=mcp,
        toolbox=tools.toolbox,
        model=llm.model,
        limiter=llm.limiter,
        journal=store.journal,
        database=store.database,
        tasks=tasks,
        load=load,
    )


def _set_stores(state: State, store: Store) -> None:
    state.database = store.database
    state.bus = store.bus
    state.keys = store.keys
    state.audit = store.audit
    state.audit_chain = AuditChain(store.database)
    state.operations = OperationsStore(store.database)
    state.user_data = store.user_data
    state.turns = store.turns
    state.questions = store.questions
    state.conversations = store.conversations
    state.turn_contents = TurnContentStore(store.database)
    state.item_deletions = ItemDeletionStore(store.database)
    state.history = HistoryStore(store.database)
    state.usage = store.usage
    state.usage_reports = UsageReports(store.database)
    state.servers = store.servers
    state.webhooks = store.webhooks
    state.push_configs = store.push_configs
    state.task_lists = TaskListStore(store.database)
    state.identity_jwks = store.identity_keys.get_jwks()


async def _stop(mcp: McpEndpoint, turn_service: TurnService, grace_seconds: float) -> None:
    """End all streams with their last messages, and hand over late turns."""
    mcp.stop_listening()
    await turn_service.stop(grace_seconds)


def _build_authenticator(settings: Settings, timeouts: Timeouts, store: Store, stack: AsyncExitStack) -> Authenticator:
    auth = Authenticator(
        settings, store.keys, store.audit, key_cache_seconds=timeouts.key_cache, key_poll_seconds=timeouts.key_poll
    )
    stack.push_async_callback(auth.stop)
    store.bus.subscribe(BusKind.KEYS_CHANGED, auth.on_keys_changed)
    return auth
