"""Reservations of budgets between concurrent steps, with the real database."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from gateway.agent.budgets import Budgets
from gateway.domain.messages import Budget, Message, Principal
from gateway.ports.model import ModelCall, ModelInfo
from gateway.store.database import Database
from gateway.store.usage import UsageStore

HOUR = 3600.0
WORKER = uuid4()
MODEL = ModelInfo("m", context_window=10_000, max_output_tokens=600)
CALL = ModelCall("m", (Message("user", "Hello"),))


@dataclass
class Spending:
    """A running turn that has used nothing yet."""

    id: UUID
    principal: Principal
    model: ModelInfo = MODEL
    epoch: int = 0
    tokens: int = 0
    usd: float = 0.0


class PausingStore(UsageStore):
    """The real store, with a function after the next read."""

    after_read: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def begin_transaction(self, owner: str) -> AsyncGenerator[Any]:
        async with super().begin_transaction(owner) as transaction:
            yield transaction
        if self.after_read is not None:
            run, self.after_read = self.after_read, None
            await run()


async def add_turn(db: asyncpg.Connection) -> Spending:
    turn_id = uuid4()
    await db.execute(
        "INSERT INTO turns (id, owner, worker_id, status, prompt, messages, model_name, parameters, options)"
        " VALUES ($1, 'ada', $2, 'running', 'x', '[]', 'm', '{}', '{}')",
        turn_id,
        WORKER,
    )
    return Spending(turn_id, Principal("ada"))


async def test_step_starts_when_another_settles_while_it_reads_the_totals(
    database_url: str, db: asyncpg.Connection
) -> None:
    database = Database(database_url, pool_size=2)
    store = PausingStore(database, WORKER)
    budgets = Budgets(store, Budget(tokens_per_day=1_000), wait_seconds=HOUR, poll_seconds=HOUR)
    first, second = await add_turn(db), await add_turn(db)
    await budgets.reserve(first, CALL)
    store.after_read = lambda: budgets.settle(first)
    async with asyncio.timeout(30):
        await budgets.reserve(second, CALL)
    assert await db.fetchval("SELECT step_tokens > 600 FROM budget_holds WHERE turn_id = $1", second.id) is True
    await database.close()
