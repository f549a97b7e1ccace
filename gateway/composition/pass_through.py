"""Requests that are passed on to the model's server."""

from contextlib import AsyncExitStack

from gateway.agent.budgets import Budgets
from gateway.composition.model_server import Llm
from gateway.composition.storage import Store
from gateway.config import Settings
from gateway.passthrough.service import PassThroughService


def build_pass_through(settings: Settings, store: Store, llm: Llm, stack: AsyncExitStack) -> PassThroughService:
    """Return the service, which stops when the stack closes."""
    service = PassThroughService(
        llm.api,
        llm.catalog,
        Budgets(store.usage, settings.user_budget),
        store.requests,
        timeout_seconds=settings.upstream_timeout_seconds,
    )
    stack.push_async_callback(service.stop)
    return service
