"""Builds and connects all parts. Only this module imports every package."""

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

from starlette.datastructures import State
from uuid_utils.compat import uuid7

from gateway.agent.budgets import Budgets
from gateway.agent.conversation_queue import ConversationQueue
from gateway.agent.loop import AgentLoop, LoopLimits
from gateway.agent.runner import Runner
from gateway.agent.runner_config import RunnerConfig, RunnerStorage
from gateway.agent.server_registry import ServerRegistry
from gateway.agent.service import TurnService
from gateway.agent.subscriptions import TurnSubscriptions
from gateway.agent.workers import LeaseTiming, TurnClaimer, WorkerHeartbeat
from gateway.api.mcp.endpoint import McpEndpoint
from gateway.api.mcp.question_state import QuestionStates
from gateway.api.rate_limit.limiter import RateLimiter
from gateway.api.security.authentication import Authenticator
from gateway.common.concurrency import SupervisedTask, TaskRegistry
from gateway.common.lease import WorkerLease
from gateway.common.load import LoadMonitor, find_memory_limit
from gateway.common.redaction import Redactor, load_rules
from gateway.common.timeouts import Timeouts
from gateway.config import Settings
from gateway.domain.bus import BusKind, BusMessage
from gateway.llm.build import connect_model_server
from gateway.llm.catalog import Catalog
from gateway.llm.resilient import ResilientModel, RetryPolicy
from gateway.mcp_client.caller_identity import TokenIssuer
from gateway.mcp_client.identity_keys import IdentityKeys
from gateway.mcp_client.policy.build import apply_policy
from gateway.mcp_client.server_config import ServerConfigFile
from gateway.mcp_client.tool_server.definitions import DefinitionClient
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import Toolbox
from gateway.ports.turns import TurnSlots
from gateway.store.admin.audit_chain import AuditChain
from gateway.store.admin.user_data import UserDataStore, delete_old_turns_forever
from gateway.store.api_keys import KeyStore
from gateway.store.audit import AuditStore
from gateway.store.bus import PostgresBus
from gateway.store.conversations import ConversationStore
from gateway.store.database import Database
from gateway.store.encryption import Cipher, load_encryption_secrets
from gateway.store.health import StorageHealth
from gateway.store.history import HistoryStore
from gateway.store.journal.ephemeral_journal import EphemeralJournal
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway.store.lists.turn_contents import TurnContentStore
from gateway.store.mcp_servers import ServerStore
from gateway.store.oauth_grants import PostgresGrantStore
from gateway.store.questions import QuestionStore
from gateway.store.response_cache import ResponseCacheStore
from gateway.store.search.indexer import SearchIndexer
from gateway.store.turns import TurnStore, prune_forever
from gateway.store.usage import UsageStore
from gateway.store.usage_report import UsageReports
from gateway.store.webhooks.queue import WebhookStore
from gateway.store.workers import WorkerStore
from gateway.webhooks.deliverer import create_deliverer
from gateway_runtime.cached_value import CachedValue
from gateway_runtime.postgres.connections import ConnectionTimeouts


@dataclass(frozen=True)
class Store:
    """The database and its repositories. `build_agent` starts the bus after its subscribers."""

    database: Database
    journal: PostgresJournal
    bus: PostgresBus
    turns: TurnStore
    workers: WorkerStore
    conversations: ConversationStore
    usage: UsageStore
    questions: QuestionStore
    keys: KeyStore
    audit: AuditStore
    user_data: UserDataStore
    servers: ServerStore
    grants: PostgresGrantStore
    redactor: Redactor
    cipher: Cipher
    identity_keys: IdentityKeys
    webhooks: WebhookStore


@dataclass(frozen=True)
class Llm:
    """The model server and the catalog of its models."""

    model: ResilientModel
    catalog: Catalog


@dataclass(frozen=True)
class Tools:
    """The MCP servers: `toolbox` connects to them, `policy_toolbox` applies the administrator's policy.

    `host_toolbox` applies it, too, and leaves the servers' content unchanged.
    """

    toolbox: McpToolbox
    policy_toolbox: Toolbox
    host_toolbox: Toolbox
    registry: ServerRegistry
    definitions: DefinitionClient


@asynccontextmanager
async def build_gateway(
    settings: Settings, servers: list[ServerConfig], timeouts: Timeouts, state: State
) -> AsyncGenerator[None]:
    """Start every part; stop in reverse order.

    Sets the attributes of `state` that `api/deps.py` reads.
    """
    tasks = TaskRegistry()
    worker_id = settings.gateway_worker_id or uuid7()
    lease = WorkerLease()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(build_store(settings, timeouts, worker_id, tasks))
        llm = await stack.enter_async_context(build_llm(settings, tasks))
        tools = await stack.enter_async_context(build_tools(settings, servers, store, tasks))
        auth = _build_authenticator(settings, timeouts, store, stack)
        rates = RateLimiter(settings)
        stack.push_async_callback(rates.close)
        load = LoadMonitor(
            max_lag_seconds=settings.shed_lag_seconds,
            max_memory_bytes=settings.shed_memory_bytes or find_memory_limit(settings.gateway_workers),
        )
        _supervise(load.task, tasks, stack)
        if settings.webhook_hosts:
            _supervise(create_deliverer(settings, store.webhooks).task, tasks, stack)
        agent = build_agent(settings, timeouts, worker_id, store, llm, tools, lease, tasks, load, rates)
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
        )
        tools.toolbox.subscribe_to_changes(mcp.notify_changes)
        await stack.enter_async_context(mcp.run_sessions())
        state.settings = settings
        state.auth = auth
        state.rates = rates
        _set_stores(state, store)
        state.turn_service = turn_service
        state.lease = lease
        state.registry = tools.registry
        state.mcp = mcp
        state.toolbox = tools.policy_toolbox
        state.definitions = tools.definitions
        state.catalog = llm.catalog
        state.model = llm.model
        state.storage_health = _build_storage_health(settings, timeouts, store, lease, stack)
        state.model_health = CachedValue(llm.model.check, timeouts.model_health)
        state.tasks = tasks
        state.load = load
        state.started_at = time.monotonic()
        state.stop = partial(_stop, mcp, turn_service)
        yield


def _set_stores(state: State, store: Store) -> None:
    state.database = store.database
    state.bus = store.bus
    state.keys = store.keys
    state.audit = store.audit
    state.audit_chain = AuditChain(store.database)
    state.user_data = store.user_data
    state.turns = store.turns
    state.questions = store.questions
    state.conversations = store.conversations
    state.turn_contents = TurnContentStore(store.database)
    state.history = HistoryStore(store.database)
    state.usage = store.usage
    state.usage_reports = UsageReports(store.database)
    state.servers = store.servers
    state.webhooks = store.webhooks
    state.identity_jwks = store.identity_keys.get_jwks()


def _build_storage_health(
    settings: Settings, timeouts: Timeouts, store: Store, lease: WorkerLease, stack: AsyncExitStack
) -> StorageHealth:
    url, limits = settings.postgres_url, store.database.connector.limits
    assert url is not None
    health = StorageHealth(url, store.journal, lambda: lease.is_valid, limits=limits, max_age_seconds=timeouts.health)
    stack.push_async_callback(health.close)
    return health


async def _stop(mcp: McpEndpoint, turn_service: TurnService, grace_seconds: float) -> None:
    """End all streams with their last messages, and hand over late turns."""
    mcp.stop_listening()
    await turn_service.stop(grace_seconds)


def _create_database(settings: Settings) -> Database:
    assert settings.postgres_url is not None
    limits = ConnectionTimeouts(
        statement=settings.database_statement_timeout_seconds,
        lock=settings.database_lock_timeout_seconds,
        silence=settings.database_silence_timeout_seconds,
    )
    return Database(
        settings.postgres_url,
        direct_url=settings.database_direct_url,
        pool_size=settings.database_pool_size,
        limits=limits,
    )


@asynccontextmanager
async def build_store(
    settings: Settings, timeouts: Timeouts, worker_id: UUID, tasks: TaskRegistry
) -> AsyncGenerator[Store]:
    """Open the database and start the journal.

    On exit, the journal commits the waiting writes.
    """
    database = _create_database(settings)
    redactor = load_rules(settings.redaction_rules)
    journal = PostgresJournal(
        database.direct,
        worker_id,
        flush_seconds=settings.journal_flush_ms / 1000,
        timeout_seconds=timeouts.journal,
        retry_seconds=settings.storage_retry_seconds,
        redactor=redactor,
    )
    secrets = load_encryption_secrets(settings)
    cipher = Cipher(*secrets)
    workers, turns = WorkerStore(database, worker_id), TurnStore(database)
    retention, user_data = timedelta(days=settings.journal_retention_days), UserDataStore(database)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        _supervise(SupervisedTask("journal retention", partial(prune_forever, turns, retention)), tasks, stack)
        if settings.turn_retention_days is not None:
            retain = partial(delete_old_turns_forever, user_data, timedelta(days=settings.turn_retention_days))
            _supervise(SupervisedTask("turn retention", retain), tasks, stack)
        stack.callback(workers.close)
        _supervise(SearchIndexer(database).task, tasks, stack)
        journal.start()
        tasks.add(*journal.tasks)
        stack.push_async_callback(journal.stop)
        yield Store(
            database=database,
            journal=journal,
            bus=PostgresBus(database.direct),
            turns=turns,
            workers=workers,
            conversations=ConversationStore(database, redactor=redactor),
            usage=UsageStore(database, worker_id, redactor=redactor),
            questions=QuestionStore(
                database, worker_id, lifetime=timedelta(days=settings.input_expiry_days), redactor=redactor
            ),
            keys=KeyStore(database),
            audit=AuditStore(database),
            user_data=user_data,
            servers=ServerStore(database, cipher),
            grants=PostgresGrantStore(database, cipher),
            redactor=redactor,
            cipher=cipher,
            identity_keys=IdentityKeys(secrets),
            webhooks=WebhookStore(database),
        )


@asynccontextmanager
async def build_llm(settings: Settings, tasks: TaskRegistry) -> AsyncGenerator[Llm]:
    """Connect to the model server and keep its catalog fresh."""
    upstream, catalog = connect_model_server(settings)
    policy = RetryPolicy(
        retries=settings.model_retries,
        delay=settings.model_retry_delay,
        max_wait=settings.model_retry_max_wait,
        text_call_chars=settings.model_text_call_chars,
    )
    model = ResilientModel(upstream, catalog, fallbacks=settings.model_fallbacks, policy=policy)
    refresh = SupervisedTask("model catalog", partial(upstream.refresh_catalog_periodically, catalog))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(upstream.close)
        _supervise(refresh, tasks, stack)
        yield Llm(model, catalog)


@asynccontextmanager
async def build_tools(
    settings: Settings, servers: list[ServerConfig], store: Store, tasks: TaskRegistry
) -> AsyncGenerator[Tools]:
    """Connect to the MCP servers.

    Changes of their configuration open and close connections.
    """
    toolbox = McpToolbox(servers, settings, store.servers, store.grants, identity_keys=store.identity_keys)
    store.identity_keys.write_jwks_file(settings.gateway_data_dir)
    apply_rules = partial(
        apply_policy,
        toolbox,
        deny=settings.tools_deny,
        redactor=store.redactor,
        max_result_chars=settings.tool_result_max_chars,
    )
    policy_toolbox, host_toolbox = apply_rules(), apply_rules(sanitizes=False)
    registry = ServerRegistry(ServerConfigFile(settings), toolbox, store.servers, store.bus)
    store.bus.subscribe(BusKind.SERVERS_CHANGED, registry.on_servers_changed)
    store.bus.subscribe(BusKind.GRANTS_CHANGED, lambda _: toolbox.on_grants_changed())
    async with AsyncExitStack() as stack:
        await toolbox.connect_servers()
        stack.push_async_callback(toolbox.disconnect_servers)
        _supervise(registry.task, tasks, stack)
        secret = settings.tools_server_secret
        issuer = TokenIssuer(store.identity_keys, secret.get_secret_value() if secret else None)
        definitions = DefinitionClient(registry.get_config, issuer)
        yield Tools(toolbox, policy_toolbox, host_toolbox, registry, definitions)


@asynccontextmanager
async def build_agent(
    settings: Settings,
    timeouts: Timeouts,
    worker_id: UUID,
    store: Store,
    llm: Llm,
    tools: Tools,
    lease: WorkerLease,
    tasks: TaskRegistry,
    load: LoadMonitor,
    slots: TurnSlots,
) -> AsyncGenerator[TurnService]:
    """Start the runner and its tasks.

    On exit, the running turns are handed over to other workers.
    """
    runner = _build_runner(settings, timeouts, worker_id, store, llm, tools, lease, slots)
    subscriptions = TurnSubscriptions(
        runner, store.turns, store.bus, store.journal, storage_timeout_seconds=settings.storage_retry_seconds
    )
    queue = ConversationQueue(worker_id, store.conversations, subscriptions, store.bus, timeouts.conversation_busy)
    service = TurnService(
        settings,
        runner,
        subscriptions,
        turns=store.turns,
        queue=queue,
        questions=store.questions,
        bus=store.bus,
        load=load,
    )
    sign_in = tools.toolbox.sign_in_service
    assert sign_in is not None
    sign_in.on_granted = service.resume_after_sign_in
    sign_in.on_change = partial(_announce_sign_in, tools.toolbox, store.bus)
    interval = settings.heartbeat_seconds
    timing = LeaseTiming(interval, settings.heartbeat_timeout_seconds or 4 * interval)
    heartbeat = WorkerHeartbeat(runner, store.workers, lease, timing)
    claimer = TurnClaimer(runner, store.workers, lease, store.turns, store.questions, timing)
    lease.on_end = claimer.on_lease_end
    store.bus.subscribe(BusKind.CANCEL_TURN, runner.on_cancel)
    store.bus.subscribe(BusKind.WATCH_TURN, runner.on_watch)
    store.bus.subscribe(BusKind.TURN_RETRIED, runner.on_retried)
    store.bus.subscribe(BusKind.TURN_RUNNABLE, runner.on_answer)
    store.bus.subscribe(BusKind.TURN_RUNNABLE, claimer.on_turn_runnable)
    store.bus.subscribe(BusKind.TURN_EVENTS, subscriptions.on_events)
    store.bus.subscribe(BusKind.TICKET_RELEASED, queue.on_ticket_released)
    async with AsyncExitStack() as stack:
        _supervise(store.bus.task, tasks, stack)
        stack.push_async_callback(queue.stop)
        stack.push_async_callback(subscriptions.stop)
        await tools.toolbox.wait_until_connected(timeouts.mcp_connect)
        stack.callback(lease.stop)
        await heartbeat.start()
        tasks.add(heartbeat.task)
        stack.push_async_callback(heartbeat.task.stop)
        stack.push_async_callback(runner.stop, 0)
        _supervise(claimer.task, tasks, stack)
        yield service


def _build_authenticator(settings: Settings, timeouts: Timeouts, store: Store, stack: AsyncExitStack) -> Authenticator:
    auth = Authenticator(
        settings, store.keys, store.audit, key_cache_seconds=timeouts.key_cache, key_poll_seconds=timeouts.key_poll
    )
    stack.push_async_callback(auth.stop)
    store.bus.subscribe(BusKind.KEYS_CHANGED, auth.on_keys_changed)
    return auth


def _supervise(task: SupervisedTask, tasks: TaskRegistry, stack: AsyncExitStack) -> None:
    task.start()
    tasks.add(task)
    stack.push_async_callback(task.stop)


def _build_runner(
    settings: Settings,
    timeouts: Timeouts,
    worker_id: UUID,
    store: Store,
    llm: Llm,
    tools: Tools,
    lease: WorkerLease,
    slots: TurnSlots,
) -> Runner:
    storage = RunnerStorage(
        journal=store.journal,
        ephemeral_journal=EphemeralJournal(store.journal),
        conversations=store.conversations,
        turns=store.turns,
        workers=store.workers,
        questions=store.questions,
        responses=ResponseCacheStore(store.database),
        bus=store.bus,
    )
    limits = LoopLimits(
        steps=settings.agent_max_steps, tokens=settings.agent_max_tokens, parallel_calls=settings.tool_parallelism
    )
    return Runner(
        RunnerConfig.from_settings(settings, worker_id),
        AgentLoop(llm.model, tools.policy_toolbox, limits),
        storage,
        models=llm.catalog,
        toolbox=tools.policy_toolbox,
        budgets=Budgets(store.usage, settings.user_budget, wait_seconds=timeouts.budget_wait),
        lease=lease,
        slots=slots,
    )


def _announce_sign_in(toolbox: McpToolbox, bus: PostgresBus) -> None:
    toolbox.on_grants_changed()
    bus.publish(BusMessage(BusKind.GRANTS_CHANGED, BusMessage.NO_TURN))
