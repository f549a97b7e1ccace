"""Stored progress of a claimed turn."""

from collections.abc import Sequence
from typing import NamedTuple

from gateway.domain.events import JournalEntry
from gateway.domain.messages import StoredQuestion
from gateway.ports.server_tasks import TaskWait


class StoredProgress(NamedTuple):
    """Events of a claimed turn, its questions, and its waits for tasks."""

    events: Sequence[JournalEntry]
    inputs: list[StoredQuestion]
    waits: Sequence[TaskWait] = ()
