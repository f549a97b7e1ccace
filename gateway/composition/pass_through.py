"""Requests that are passed on to the model's server."""

from contextlib import AsyncExitStack

from starlette.datastructures import State

from gateway.agent.budgets import Budgets
from gateway.api.http.uploads import UploadReader
from gateway.common.concurrency import TaskRegistry
from gateway.composition.model_server import Llm
from gateway.composition.storage import Store
from gateway.composition.supervision import supervise
from gateway.config import Settings
from gateway.passthrough.files import FileService
from gateway.passthrough.service import PassThroughService


def build_pass_through(
    settings: Settings, store: Store, llm: Llm, tasks: TaskRegistry, stack: AsyncExitStack, state: State
) -> None:
    """Build the services, which stop when the stack closes.

    Sets the attributes of `state` that `api/deps.py` reads. `files` is None if it is off.
    """
    budgets = Budgets(store.usage, settings.user_budget)
    service = PassThroughService(
        llm.api, llm.catalog, budgets, store.requests, timeout_seconds=settings.upstream_timeout_seconds
    )
    stack.push_async_callback(service.stop)
    state.pass_through, state.files, state.uploads = service, None, UploadReader(settings)
    if settings.upstream_files:
        state.files = FileService(service, store.upstream_objects, budgets, llm.catalog)
        stack.push_async_callback(state.files.stop)
        supervise(state.files.task, tasks, stack)
