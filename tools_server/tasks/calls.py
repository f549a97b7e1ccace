"""Deduplication of calls by their idempotency keys.

A repeated call returns the result of the first one. Key and result are stored in the transaction of the change, so that
there are either both or neither.
"""

import hashlib
import json
import random
from dataclasses import dataclass

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from sqlalchemy import delete, func, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from tools_server.tasks.models import TaskCall

KEY_META = "mcp-agent-gateway/idempotency-key"
"""Name of the key in a call's `_meta`."""
DEDUPLICATES = {"mcp-agent-gateway/idempotent": True}
"""`_meta` of a tool that takes effect once per key."""
LIFETIME_DAYS = 7
MAX_CALLS_PER_USER = 10_000
_MAX_PRUNED = 100
_CAP_PROBABILITY = 0.01


class KeyReused(Exception):
    """The key belongs to another call."""


@dataclass(frozen=True)
class CallKey:
    """Hashes of a key and of its call."""

    key: str
    fingerprint: bytes


def parse_call_key(ctx: Context[object], tool: str, *arguments: object) -> CallKey | None:
    """Parse the key of a tool call; None without one.

    Raises:
        ToolError: it is not a string.
    """
    key: object = (ctx.request_context.meta or {}).get(KEY_META)
    if key is None:
        return None
    if not isinstance(key, str):
        raise ToolError(f"_meta: {KEY_META} must be a string.")
    call = json.dumps([tool, *arguments]).encode()
    return CallKey(hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest(), hashlib.sha256(call).digest())


async def find_result(session: AsyncSession, user: str, call: CallKey) -> str | None:
    """Return the result of an earlier call with this key.

    Raises:
        KeyReused: that was another call.
    """
    row = await session.get(TaskCall, (user, call.key))
    if row is not None and row.fingerprint != call.fingerprint:
        raise KeyReused
    return None if row is None else row.result


async def claim_call(session: AsyncSession, user: str, call: CallKey) -> str | None:
    """Claim the key, or return the result of an earlier call.

    The claim belongs to the transaction. Waits for a concurrent call with the same key. Raises like `find_result`.
    """
    values = {"user_id": user, "key": call.key, "fingerprint": call.fingerprint}
    claim = insert(TaskCall).values(values).on_conflict_do_nothing().returning(col(TaskCall.key))
    if (await session.exec(claim)).first() is not None:  # pyright: ignore
        await _prune_calls(session, user)
        return None
    return await find_result(session, user, call)


async def save_result(session: AsyncSession, user: str, call: CallKey, result: str) -> None:
    """Store the result of a claimed call."""
    claimed = update(TaskCall).where(col(TaskCall.user_id) == user, col(TaskCall.key) == call.key)
    await session.exec(claimed.values(result=result))


async def _prune_calls(session: AsyncSession, user: str) -> None:
    """Delete expired calls, and sometimes a user's oldest beyond the maximum."""
    is_expired = col(TaskCall.created_at) < func.now() - text(f"interval '{LIFETIME_DAYS} days'")
    expired = select(TaskCall.user_id, TaskCall.key).where(is_expired).limit(_MAX_PRUNED)
    row_id = tuple_(col(TaskCall.user_id), col(TaskCall.key))
    await session.exec(delete(TaskCall).where(row_id.in_(expired.with_for_update(skip_locked=True))))
    if random.random() < _CAP_PROBABILITY:  # noqa: S311 - spreads work, protects nothing
        await cap_calls(session, user, MAX_CALLS_PER_USER)


async def cap_calls(session: AsyncSession, user: str, max_calls: int) -> None:
    """Delete a user's oldest calls beyond the newest `max_calls`."""
    is_users = col(TaskCall.user_id) == user
    newest_first = select(TaskCall.created_at).where(is_users).order_by(col(TaskCall.created_at).desc())
    oldest_kept = newest_first.offset(max_calls - 1).limit(1).scalar_subquery()
    await session.exec(delete(TaskCall).where(is_users, col(TaskCall.created_at) < oldest_kept))
