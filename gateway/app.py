"""Puts the gateway together: the one module that knows every class."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uuid_utils.compat import uuid7

from gateway import __version__
from gateway.agent.budgets import Budgets
from gateway.agent.loop import AgentLoop, LoopLimits
from gateway.agent.runner import Runner, RunnerConfig, RunnerStorage
from gateway.agent.server_registry import Registry
from gateway.agent.service import TurnService
from gateway.agent.subscriptions import TurnSubscriptions
from gateway.agent.workers import WorkerHeartbeat
from gateway.api.deps import State
from gateway.api.http import errors, openapi
from gateway.api.http.body_limit import BodyLimit
from gateway.api.http.request_context import RequestContext
from gateway.api.mcp.endpoint import McpEndpoint
from gateway.api.rate_limit.limiter import RATE_HEADERS, Rates
from gateway.api.routes.native.budget import budget_of_users
from gateway.api.routes.registration import register_routes
from gateway.api.security.authentication import Authenticator
from gateway.api.security.middleware import Guard
from gateway.common.concurrency import SupervisedTask, TaskRegistry
from gateway.common.logging import get_logger
from gateway.common.redaction import load_rules
from gateway.config import ConfigError, Settings
from gateway.domain.errors import StorageUnavailable
from gateway.domain.messages import BusMessage
from gateway.llm.catalog import Catalog
from gateway.llm.client import SdkModel
from gateway.llm.rate_limit.limiter import Limiter, SharedLimits
from gateway.llm.recording import Recorder
from gateway.llm.resilient import Persistence, SteadyModel
from gateway.mcp_client.policy.build import apply_policy
from gateway.mcp_client.server_config import ServerConfig, load_servers
from gateway.mcp_client.toolbox import McpToolbox
from gateway.store.api_keys import KeyStore
from gateway.store.audit import AuditStore
from gateway.store.bus import PostgresBus
from gateway.store.conversations import ConversationStore
from gateway.store.database import Database
from gateway.store.encryption import cipher_from_settings
from gateway.store.history import HistoryStore
from gateway.store.journal import EphemeralJournal, PostgresJournal
from gateway.store.mcp_servers import ServerStore
from gateway.store.oauth_grants import GrantStore
from gateway.store.questions import InputStore
from gateway.store.response_cache import ResponseCacheStore
from gateway.store.turns import TurnStore
from gateway.store.usage import UsageStore
from gateway.store.usage_report import UsageReports

log = get_logger(__name__)

_SHOWN = ("X-Request-ID", "X-Turn-Id", "X-Gateway-Cache", "Mcp-Session-Id", "Retry-After")
_SETTLE_SECONDS = 1.0
_FORGET_SECONDS = 3600.0


def create_app(settings: Settings, *, until_served: Callable[[], Awaitable[None]] | None = None) -> FastAPI:
    """The gateway's ASGI application. Its lifespan connects and disconnects everything.

    `settings` must name a database and a model's server: the embedded ones are the caller's to start. When everything
    runs, the lifespan waits for `until_served`.

    Raises:
        ConfigError: they do not, or the file of MCP servers cannot be read.
    """
    if settings.postgres_url is None or settings.provider is None:
        raise ConfigError(
            "DATABASE_URL and GROQ_API_KEY (or OPENAI_API_KEY) must be set here: `agent-gateway serve` fills them in"
        )
    servers = load_servers(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with running(settings, servers) as state:
            app.state.gateway = state
            gc.collect()
            gc.freeze()  # what lives as long as the process need not be looked at in every collection
            gc.set_threshold(10_000, 50, 50)
            if until_served is not None:
                await until_served()
            yield

    app = FastAPI(
        title="MCP agent gateway",
        version=__version__,
        description="Chats in; the tools of every connected MCP server and Groq's models behind; every turn kept.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(errors.Unbroken)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[*_SHOWN, *RATE_HEADERS],
        )
    app.add_middleware(RequestContext)
    errors.install(app)
    register_routes(app)
    openapi.install(app)
    app.router.routes.append(Route("/mcp", _Mcp(app), include_in_schema=False))
    return app


class _Mcp:
    """The MCP endpoint of the gateway that runs."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app.state.gateway.mcp(scope, receive, send)


@asynccontextmanager
async def running(settings: Settings, servers: list[ServerConfig]) -> AsyncGenerator[State]:
    """Every part, started; stopped in the opposite order."""
    assert settings.postgres_url is not None
    tasks = TaskRegistry()
    async with AsyncExitStack() as stack:
        database = Database(settings.postgres_url, pool_size=settings.database_pool_size)
        stack.push_async_callback(database.close)

        redactor = load_rules(settings.redaction_rules)
        worker_id = uuid7()
        journal = PostgresJournal(
            database.dsn, worker_id, flush_seconds=settings.journal_flush_ms / 1000, redactor=redactor
        )
        await journal.start()
        stack.push_async_callback(journal.stop)

        upstream, catalog = _upstream(settings)
        stack.push_async_callback(upstream.close)
        persistence = Persistence(
            retries=settings.model_retries, delay=settings.model_retry_delay, patience=settings.model_retry_max_wait
        )
        model = SteadyModel(upstream, catalog, fallbacks=settings.model_fallbacks, how=persistence)
        refresh = SupervisedTask("model catalog", partial(upstream.refresh_catalog_periodically, catalog))
        refresh.start()
        tasks.add(refresh)
        stack.push_async_callback(refresh.stop)

        seal = cipher_from_settings(settings)
        server_store = ServerStore(database, seal)
        toolbox = McpToolbox(servers, settings, server_store, GrantStore(database, seal))
        await toolbox.start()
        stack.push_async_callback(toolbox.stop)
        guarded = apply_policy(toolbox, deny=settings.tools_deny, redactor=redactor)

        limits = LoopLimits(
            steps=settings.agent_max_steps,
            tokens=settings.agent_max_tokens,
            parallel_calls=settings.tool_parallelism,
        )
        turns = TurnStore(database)
        conversation_store = ConversationStore(database, redactor=redactor)
        usage = UsageStore(database, redactor=redactor)
        inputs = InputStore(database, lifetime=timedelta(days=settings.input_expiry_days), redactor=redactor)

        key_store = KeyStore(database)
        audit = AuditStore(database)
        auth = Authenticator(settings, key_store, audit)
        stack.push_async_callback(auth.stop)
        rates = Rates(settings)
        stack.push_async_callback(rates.close)
        bus = PostgresBus(database.dsn)
        _wake_signed_in(toolbox, inputs, bus)
        registry = Registry(settings, toolbox, server_store, bus)
        config = RunnerConfig(
            worker_id=worker_id,
            system_prompt=settings.agent_system_prompt,
            turn_timeout=settings.agent_timeout,
            max_turns=settings.max_running_turns,
            synchronous_journal=settings.synchronous_journal,
            max_tool_tokens=settings.tool_token_budget,
            batch_tool=settings.agent_batch_tool,
        )
        storage = RunnerStorage(
            journal=journal,
            ephemeral_journal=EphemeralJournal(journal),
            conversations=conversation_store,
            workers=turns,
            questions=inputs,
            responses=ResponseCacheStore(database),
            bus=bus,
        )
        runner = Runner(
            config,
            AgentLoop(model, guarded, limits),
            storage,
            models=catalog,
            toolbox=guarded,
            budgets=Budgets(usage, budget_of_users(settings)),
        )
        subscriptions = TurnSubscriptions(runner, turns, bus)
        turn_service = TurnService(
            settings, runner, subscriptions, turns=turns, conversations=conversation_store, questions=inputs, bus=bus
        )
        beat = settings.heartbeat_seconds
        membership = WorkerHeartbeat(runner, turns, turns, inputs, worker_id, interval=beat, silent=4 * beat)
        bus.subscribe("cancel", runner.on_cancel)
        bus.subscribe("watch", runner.on_watch)
        bus.subscribe("orphan", runner.on_answer)
        bus.subscribe("orphan", membership.on_orphan)
        bus.subscribe("events", subscriptions.on_events)
        bus.subscribe("servers", registry.on_servers_changed)
        bus.subscribe("logins", lambda _: toolbox.on_grants_changed())
        bus.subscribe("keys", auth.heard)
        await bus.start()
        stack.push_async_callback(bus.stop)
        await registry.start()
        stack.push_async_callback(registry.stop)
        stack.push_async_callback(subscriptions.stop)
        await toolbox.wait_until_connected(_SETTLE_SECONDS)
        await membership.start()
        forgetting = asyncio.create_task(_forget(turns, settings.journal_retention_days), name="retention")
        stack.push_async_callback(_cancel, forgetting)
        stack.push_async_callback(runner.stop, 0)
        stack.push_async_callback(membership.stop)
        mcp = McpEndpoint(settings, turn_service, guarded, worker_id, database.dsn)
        toolbox.subscribe(mcp.notify_tools_changed)
        await stack.enter_async_context(mcp.running())
        yield State(
            settings=settings,
            auth=auth,
            keys=key_store,
            rates=rates,
            turn_service=turn_service,
            turns=turns,
            inputs=inputs,
            conversations=conversation_store,
            history=HistoryStore(database),
            usage_reports=UsageReports(database),
            servers=server_store,
            registry=registry,
            bus=bus,
            mcp=mcp,
            toolbox=guarded,
            models=catalog,
            model=model,
            database=database,
            usage=usage,
            audit=audit,
            tasks=tasks,
        )


def _wake_signed_in(toolbox: McpToolbox, inputs: InputStore, bus: PostgresBus) -> None:
    """Turns that wait for a sign-in go on when there was one, wherever its callback came."""

    async def granted(server: str, owner: str) -> None:
        for turn_id in await inputs.signed_in(server, owner):
            bus.publish(BusMessage("orphan", turn_id))

    assert toolbox.sign_in_service is not None

    def changed() -> None:
        toolbox.on_grants_changed()
        bus.publish(BusMessage("logins", BusMessage.NO_TURN))

    toolbox.sign_in_service.on_granted = granted
    toolbox.sign_in_service.on_change = changed


def _upstream(settings: Settings) -> tuple[SdkModel, Catalog]:
    """The model's server, and what is known of its models."""
    secret = settings.groq_api_key or settings.openai_api_key
    assert secret is not None
    key = secret.get_secret_value()
    shared: SharedLimits | None = None
    if settings.redis_url is not None:
        from gateway.llm.rate_limit.redis import RedisLimits

        shared = RedisLimits(settings.redis_url.get_secret_value(), key)
    limiter = Limiter(shared=shared)
    idle, queue = settings.model_idle_timeout, settings.model_queue_seconds
    recorder = Recorder(settings.model_record_dir, key=key) if settings.model_record_dir is not None else None
    if settings.groq_api_key is not None:
        from gateway.llm.providers.groq import groq_model

        model = groq_model(
            api_key=key, base_url=settings.groq_base_url, idle_timeout=idle, limiter=limiter, queue=queue,
            recorder=recorder,
        )  # fmt: skip
        return model, Catalog(aliases=settings.model_aliases)
    from gateway.llm.providers.openai import OPENAI, openai_model

    official = settings.openai_base_url == OPENAI
    model = openai_model(
        api_key=key, base_url=settings.openai_base_url, idle_timeout=idle, limiter=limiter, queue=queue,
        recorder=recorder,
    )  # fmt: skip
    not_taken = ("top_k", "repetition_penalty", "reasoning_format", "include_reasoning") if official else ()
    return model, Catalog((), open_ended=True, not_taken=not_taken)


async def _forget(turns: TurnStore, days: float) -> None:
    """Delete what the journal keeps of turns that ended long ago, a portion at a time."""
    while True:
        pause = _FORGET_SECONDS
        try:
            if await turns.prune_journal(timedelta(days=days)):
                pause = 1.0
        except StorageUnavailable:
            log.warning("retention_waits_for_database")
        await asyncio.sleep(pause)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
