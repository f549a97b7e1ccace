"""Requests that are passed on to the model's server."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from gateway.agent.budgets import Budgets
from gateway.common.concurrency import TaskRegistry
from gateway.composition.model_server import Llm
from gateway.composition.storage import Store
from gateway.composition.supervision import supervise
from gateway.config import Settings
from gateway.passthrough.files import FileService
from gateway.passthrough.service import PassThroughService


@dataclass(frozen=True)
class PassThrough:
    """The pass-through; `files` is None if it is off."""

    service: PassThroughService
    files: FileService | None


def build_pass_through(
    settings: Settings, store: Store, llm: Llm, tasks: TaskRegistry, stack: AsyncExitStack
) -> PassThrough:
    """Return the services, which stop when the stack closes."""
    budgets = Budgets(store.usage, settings.user_budget)
    service = PassThroughService(
        llm.api, llm.catalog, budgets, store.requests, timeout_seconds=settings.upstream_timeout_seconds
    )
    stack.push_async_callback(service.stop)
    if not settings.upstream_files:
        return PassThrough(service, None)
    files = FileService(service, store.upstream_objects, budgets, llm.catalog)
    stack.push_async_callback(files.stop)
    supervise(files.task, tasks, stack)
    return PassThrough(service, files)
