"""The runner, its tasks and the turn service."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import UUID

from gateway.agent.loop import AgentLoop, LoopLimits
from gateway.agent.runner import Runner
from gateway.agent.runner_config import RunnerConfig, RunnerStorage
from gateway.agent.sampling.limits import SamplingLimits
from gateway.agent.service import TurnService
from gateway.agent.subscriptions import TurnSubscriptions
from gateway.agent.tasks.poller import TaskPoller
from gateway.agent.workers import LeaseTiming, TurnClaimer, WorkerHeartbeat
from gateway.common.concurrency import TaskRegistry
from gateway.common.lease import WorkerLease
from gateway.common.load import LoadMonitor
from gateway.common.timeouts import Timeouts
from gateway.composition.model_server import Llm
from gateway.composition.observed import choose_budgets, choose_queue, choose_runner, observe_config, observe_slots
from gateway.composition.storage import Store
from gateway.composition.supervision import supervise
from gateway.composition.tools import Tools
from gateway.config import Settings
from gateway.domain.bus import BusKind, BusMessage
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.observer import Observer
from gateway.ports.turns import TurnSlots
from gateway.store.bus import PostgresBus
from gateway.store.journal.ephemeral_journal import EphemeralJournal
from gateway.store.response_cache import ResponseCacheStore


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
    observer: Observer | None = None,
) -> AsyncGenerator[TurnService]:
    """Start the runner and its tasks.

    On exit, the running turns are handed over to other workers.
    """
    runner = _build_runner(settings, timeouts, worker_id, store, llm, tools, lease, slots, observer)
    subscriptions = TurnSubscriptions(
        runner, store.turns, store.bus, store.journal, storage_timeout_seconds=settings.storage_retry_seconds
    )
    queue = choose_queue(observer)(worker_id, store.conversations, subscriptions, store.bus, timeouts.conversation_busy)
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
    heartbeat = WorkerHeartbeat(runner, store.workers, lease, timing := _choose_lease_timing(settings))
    claimer = TurnClaimer(runner, store.workers, lease, store.turns, store.questions, store.tasks, timing)
    lease.on_end = claimer.on_lease_end
    store.bus.subscribe(BusKind.CANCEL_TURN, runner.on_cancel)
    store.bus.subscribe(BusKind.WATCH_TURN, runner.on_watch)
    store.bus.subscribe(BusKind.TURN_RETRIED, runner.on_retried)
    store.bus.subscribe(BusKind.TURN_RUNNABLE, runner.on_answer)
    store.bus.subscribe(BusKind.TURN_RUNNABLE, claimer.on_turn_runnable)
    store.bus.subscribe(BusKind.TURN_EVENTS, subscriptions.on_events)
    store.bus.subscribe(BusKind.TICKET_RELEASED, queue.on_ticket_released)
    async with AsyncExitStack() as stack:
        supervise(store.bus.task, tasks, stack)
        stack.push_async_callback(queue.stop)
        supervise(subscriptions.task, tasks, stack)
        stack.push_async_callback(subscriptions.stop)
        await tools.toolbox.wait_until_connected(timeouts.mcp_connect)
        stack.callback(lease.stop)
        await heartbeat.start()
        tasks.add(heartbeat.task)
        stack.push_async_callback(heartbeat.task.stop)
        stack.push_async_callback(runner.stop, 0)
        supervise(claimer.task, tasks, stack)
        supervise(_create_task_poller(store, tools).task, tasks, stack)
        yield service


def _choose_lease_timing(settings: Settings) -> LeaseTiming:
    interval = settings.heartbeat_seconds
    return LeaseTiming(interval, settings.heartbeat_timeout_seconds or 4 * interval)


def _create_task_poller(store: Store, tools: Tools) -> TaskPoller:
    poller = TaskPoller(store.tasks, tools.toolbox.tasks, store.bus)
    store.tasks.on_due = poller.wake_poller
    return poller


def _build_runner(
    settings: Settings,
    timeouts: Timeouts,
    worker_id: UUID,
    store: Store,
    llm: Llm,
    tools: Tools,
    lease: WorkerLease,
    slots: TurnSlots,
    observer: Observer | None,
) -> Runner:
    storage = RunnerStorage(
        journal=store.journal,
        ephemeral_journal=EphemeralJournal(store.journal),
        conversations=store.conversations,
        turns=store.turns,
        workers=store.workers,
        questions=store.questions,
        tasks=store.tasks,
        responses=ResponseCacheStore(store.database),
        bus=store.bus,
    )
    limits = LoopLimits(
        steps=settings.agent_max_steps,
        tokens=settings.agent_max_tokens,
        parallel_calls=settings.tool_parallelism,
        result_chars=settings.tool_result_max_chars,
        sampling=SamplingLimits(
            settings.mcp_sampling_max_calls, settings.mcp_sampling_max_tokens, settings.agent_max_tokens
        ),
    )
    return choose_runner(observer, settings, store.redactor)(
        observe_config(RunnerConfig.from_settings(settings, worker_id, llm.tokenizer, tools.code.add_to), observer),
        AgentLoop(llm.model, tools.policy_toolbox, limits, tools.code.sandbox),
        storage,
        models=llm.catalog,
        toolbox=tools.policy_toolbox,
        budgets=choose_budgets(observer)(store.usage, settings.user_budget, wait_seconds=timeouts.budget_wait),
        lease=lease,
        slots=observe_slots(slots, observer),
    )


def _announce_sign_in(toolbox: McpToolbox, bus: PostgresBus) -> None:
    toolbox.on_grants_changed()
    bus.publish(BusMessage(BusKind.GRANTS_CHANGED, BusMessage.NO_TURN))
