"""The user's tasks, in Postgres: table, store, tools."""

from tools_server.tasks.store import TaskStore
from tools_server.tasks.tools import register

__all__ = ["TaskStore", "register"]
