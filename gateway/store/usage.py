"""What ended turns have used up. Rows of `turn_usage` come with the turn's end and stay when it is deleted."""

from gateway.messages import Spent
from gateway.store.database import Database

_SPENT = """
SELECT coalesce(sum(total_tokens) FILTER (WHERE at >= date_trunc('day', now(), 'UTC')), 0),
       coalesce(sum(total_tokens), 0),
       coalesce(sum(cost_usd) FILTER (WHERE at >= date_trunc('day', now(), 'UTC')), 0),
       coalesce(sum(cost_usd), 0)
FROM turn_usage WHERE at >= date_trunc('month', now(), 'UTC') AND
"""


class UsageStore:
    """See `Ledger` of the agent."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def spent(self, *, owner: str | None = None, key: str | None = None) -> Spent:
        """See `Ledger.spent`."""
        whose = {"owner": owner} if owner is not None else {"key": key}
        [row] = await self._database.rows(f"{_SPENT} {next(iter(whose))} = :{next(iter(whose))}", **whose)
        return Spent(int(row[0]), int(row[1]), float(row[2]), float(row[3]))
