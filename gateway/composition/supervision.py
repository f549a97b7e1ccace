"""Supervised tasks for the life of an exit stack."""

from contextlib import AsyncExitStack

from gateway.common.concurrency import SupervisedTask, TaskRegistry


def supervise(task: SupervisedTask, tasks: TaskRegistry, stack: AsyncExitStack) -> None:
    """Start a task, register it, and stop it when the stack closes."""
    task.start()
    tasks.add(task)
    stack.push_async_callback(task.stop)
