"""Usage of passed-on requests, beside that of turns."""

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import text

from gateway.ports.upstream import RequestLedger, RequestUsage
from gateway.store.audit import make_audit_entry
from gateway.store.database import Database

_INSERT_USAGE = """
INSERT INTO turn_usage (turn_id, owner, key, model_name, status, prompt_tokens, completion_tokens, total_tokens,
                        cost_usd, error_code, endpoint, at)
VALUES (:id, :owner, :key, :model, :status, :prompt, :completion, :total, :usd, :error_code, :endpoint, now())
ON CONFLICT (turn_id) DO NOTHING"""
_DELETE_HOLD = "DELETE FROM request_holds WHERE id = :id"


class RequestLedgerStore(RequestLedger):
    """See `RequestLedger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, used: RequestUsage, hold_id: UUID | None = None) -> None:
        """See `RequestLedger.record`.

        One transaction: the cost is counted as reserved or as used, never twice and never not at all.
        """
        principal, usage = used.principal, used.usage
        detail = {"endpoint": used.endpoint, "status": used.status, "key": principal.key, **used.detail}
        if used.model:
            detail |= {"model": used.model, "tokens": usage.total_tokens, "cost_usd": used.cost_usd}
        async with self._database.session() as session:
            connection = await session.connection()
            if hold_id is not None:
                await connection.execute(text(_DELETE_HOLD), {"id": hold_id})
            if used.model:
                await insert_usage(connection, used)
            session.add(make_audit_entry(principal.user, used.action, used.subject, detail))


async def insert_usage(connection: AsyncConnection, used: RequestUsage) -> None:
    """Insert the row of a request beside those of turns."""
    await connection.execute(text(_INSERT_USAGE), _list_usage_values(used))


def _list_usage_values(used: RequestUsage) -> dict[str, object]:
    return {
        "id": used.id,
        "owner": used.principal.user,
        "key": used.principal.key,
        "model": used.model,
        "status": used.status,
        "prompt": used.usage.prompt_tokens,
        "completion": used.usage.completion_tokens,
        "total": used.usage.total_tokens,
        "usd": used.cost_usd,
        "error_code": used.error_code,
        "endpoint": used.endpoint,
    }
