"""The observed parts of the gateway.

Without an observer, while traces and metrics are off, they are the plain parts, and `gateway.observation` is not
imported.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from gateway.agent.budgets import Budgets
from gateway.agent.conversation_queue import ConversationQueue
from gateway.agent.runner import Runner
from gateway.agent.runner_config import RunnerConfig
from gateway.config import Settings
from gateway.llm.rate_limit.limiter import ModelRateLimiter
from gateway.llm.resilient import ResilientModel
from gateway.ports.code import Sandbox
from gateway.ports.observer import Observer
from gateway.ports.tools import Toolbox
from gateway.ports.turns import TurnSlots
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway.store.questions import QuestionStore
from gateway_runtime.redaction.redactor import Redactor


def choose_journal(observer: Observer | None) -> Callable[..., PostgresJournal]:
    if observer is None:
        return PostgresJournal
    from gateway.observation.storage import ObservedJournal

    return partial(ObservedJournal, observer=observer)


def choose_questions(observer: Observer | None) -> Callable[..., QuestionStore]:
    if observer is None:
        return QuestionStore
    from gateway.observation.storage import ObservedQuestions

    return partial(ObservedQuestions, observer=observer)


def choose_model(observer: Observer | None, settings: Settings, redactor: Redactor) -> Callable[..., ResilientModel]:
    if observer is None:
        return ResilientModel
    from gateway.observation.model import ObservedModel

    return partial(ObservedModel, observer=observer, provider=_name_provider(settings), redactor=redactor)


def choose_limiter(observer: Observer | None) -> Callable[..., ModelRateLimiter]:
    if observer is None:
        return ModelRateLimiter
    from gateway.observation.model import ObservedLimiter

    return partial(ObservedLimiter, observer=observer)


def choose_budgets(observer: Observer | None) -> Callable[..., Budgets]:
    if observer is None:
        return Budgets
    from gateway.observation.turns import ObservedBudgets

    return partial(ObservedBudgets, observer=observer)


def choose_queue(observer: Observer | None) -> Callable[..., ConversationQueue]:
    if observer is None:
        return ConversationQueue
    from gateway.observation.turns import ObservedQueue

    return partial(ObservedQueue, observer=observer)


def choose_runner(observer: Observer | None, settings: Settings, redactor: Redactor) -> Callable[..., Runner]:
    if observer is None:
        return Runner
    from gateway.observation.turns import ObservedRunner

    return partial(ObservedRunner, observer=observer, provider=_name_provider(settings), redactor=redactor)


def observe_config(config: RunnerConfig, observer: Observer | None) -> RunnerConfig:
    if observer is None:
        return config
    from gateway.observation.turns import make_trace_context

    return replace(config, get_trace_context=partial(make_trace_context, observer))


def observe_slots(slots: TurnSlots, observer: Observer | None) -> TurnSlots:
    if observer is None:
        return slots
    from gateway.observation.turns import ObservedSlots

    return ObservedSlots(slots, observer)


def observe_calls(toolbox: Toolbox, observer: Observer | None, redactor: Redactor) -> Toolbox:
    if observer is None:
        return toolbox
    from gateway.observation.tools import ObservedToolbox

    return ObservedToolbox(toolbox, observer, redactor)


def observe_programs(sandbox: Sandbox, observer: Observer | None, redactor: Redactor) -> Sandbox:
    if observer is None:
        return sandbox
    from gateway.observation.programs import ObservedSandbox

    return ObservedSandbox(sandbox, observer, redactor)


def observe_servers(toolbox: Toolbox, observer: Observer | None) -> Toolbox:
    if observer is None:
        return toolbox
    from gateway.observation.tools import ObservedServers

    return ObservedServers(toolbox, observer)


def _name_provider(settings: Settings) -> str:
    """The provider's name by the conventions of GenAI."""
    return "groq" if settings.groq_api_key is not None else "openai"
