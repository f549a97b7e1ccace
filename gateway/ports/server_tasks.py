"""Tasks of MCP servers that turns wait for."""

from abc import abstractmethod
from collections.abc import Collection
from typing import Protocol
from uuid import UUID

import msgspec

from gateway.domain.messages import Principal
from gateway.domain.server_tasks import ServerTask


class TaskWait(msgspec.Struct, frozen=True):
    """A stored wait of a call for its task.

    `is_settled`: the call need not wait any longer.
    """

    id: UUID
    turn_id: UUID
    call_id: str
    task: ServerTask
    is_settled: bool = False


class DueTask(msgspec.Struct, frozen=True):
    """A task to be polled now.

    `principal` is that of the turn. Without `is_awaited`, the turn has ended or was cancelled.
    """

    wait: TaskWait
    principal: Principal
    is_awaited: bool


class TaskWaitRepository(Protocol):
    """Waits of turns for tasks. Every method may raise StorageUnavailable."""

    @abstractmethod
    async def save_wait(self, turn_id: UUID, call_id: str, task: ServerTask, *, epoch: int) -> TaskWait:
        """Store that a call waits for a task.

        Raises:
            TurnTakenOver: this worker does not own the turn in this epoch.
        """
        ...

    @abstractmethod
    async def list_waits(self, turn_id: UUID) -> list[TaskWait]:
        """List the waits of a turn, oldest first."""
        ...

    @abstractmethod
    async def abandon_waits(self, wait_ids: Collection[UUID]) -> None:
        """Make the tasks due, since their turn has ended: they are cancelled."""
        ...

    @abstractmethod
    async def claim_due(self, limit: int, seconds: float) -> list[DueTask]:
        """Return tasks that are due, which no other worker gets for `seconds`."""
        ...

    @abstractmethod
    async def find_next_due(self) -> float | None:
        """Return the seconds until a task is due; None: there is none."""
        ...

    @abstractmethod
    async def postpone_poll(self, wait_id: UUID, seconds: float) -> None:
        """Poll a task again after `seconds`."""
        ...

    @abstractmethod
    async def settle_wait(self, wait: TaskWait) -> bool:
        """End a wait; return whether its suspended turn continues now."""
        ...


class TaskClient(Protocol):
    """Polls and cancels tasks at MCP servers."""

    @abstractmethod
    async def is_task_settled(self, task: ServerTask, principal: Principal) -> bool:
        """Return whether a call should go on with its task.

        It has ended, asks for input, is unknown to its server, or has taken too long. False also if the server cannot
        be reached now.
        """
        ...

    @abstractmethod
    async def cancel_server_task(self, task: ServerTask, principal: Principal) -> bool:
        """Cancel a task; return False if that must be tried again."""
        ...
