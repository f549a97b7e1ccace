"""The limits of a model server's key, shared through Redis by all gateways that use it.

A hash a model holds what `Budget` holds in memory, and is changed by one script at a time. Only spans of time go to and
fro; the clock is Redis's.
"""

import hashlib
from functools import partial
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.common.redis import BACKOFF_SECONDS, TIMEOUT_SECONDS, RedisUnavailable, SharedRedis
from gateway.ports.rate_limit import LimitState, RateLimitHeaders, Reservation, SharedLimits

_MAX_CONNECTIONS = 32

# What is pending counts for two epochs: a gateway that dies leaves nothing for longer.
_SCRIPT = """
local key, op, tokens = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local epoch = math.floor(now / 120)
local state, stored = {}, redis.call('HGETALL', key)
for i = 1, #stored, 2 do state[stored[i]] = tonumber(stored[i + 1]) end

local function get(name) return state[name] or 0 end
local function set(name, value)
  state[name] = value
  redis.call('HSET', key, name, value)
end
local function add(name, value) set(name, get(name) + value) end
local function give_back(what, amount)
  if state[what .. ':limit'] then add(what .. ':level', amount) end
end
local function pending(what)
  return get(what .. ':pending:' .. epoch) + get(what .. ':pending:' .. (epoch - 1))
end
local function settle(what, amount, at)
  local name = what .. ':pending:' .. at
  if state[name] then set(name, math.max(0, state[name] - amount)) end
end
local function learn(what, limit, remaining, rate, alone)
  if not limit then return end
  local left = remaining - pending(what)
  if state[what .. ':limit'] and not alone then left = math.min(left, get(what .. ':level')) end
  set(what .. ':limit', limit)
  set(what .. ':level', left)
  set(what .. ':rate', rate)
end

local past = math.max(0, now - (state.at or now))
for _, what in ipairs({'tokens', 'requests'}) do
  local limit = state[what .. ':limit']
  if limit then
    set(what .. ':level', math.min(limit, get(what .. ':level') + get(what .. ':rate') * past))
  end
end
set('at', now)
redis.call('EXPIRE', key, 2 * 86400)

if op == 'correct' then
  give_back('tokens', tokens)

elseif op == 'answered' then
  local number, first, at, refunded, block = tonumber(ARGV[3]), ARGV[4] == '1', tonumber(ARGV[5]), ARGV[6], ARGV[7]
  settle('tokens', tokens, at)
  settle('requests', 1, at)
  if refunded == '1' then
    give_back('tokens', tokens)
    give_back('requests', 1)
  end
  local alone = first and number == get('number')
  learn('tokens', tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), alone)
  learn('requests', tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), alone)
  if tonumber(block) > 0 then set('blocked', math.max(get('blocked'), now + block)) end

else
  local wait = get('blocked') - now
  for what, amount in pairs({tokens = tokens, requests = 1}) do
    local limit = state[what .. ':limit']
    local short = limit and math.min(amount, limit) - get(what .. ':level') or 0
    if short > 0.001 then wait = math.max(wait, short / get(what .. ':rate')) end
  end
  if wait > 0 then return {string.format('%.6f', wait), 0, 0, 0} end
  local first = pending('requests') == 0 and 1 or 0
  for name in pairs(state) do
    local of = tonumber(string.match(name, ':pending:(%d+)$'))
    if of and of < epoch - 1 then redis.call('HDEL', key, name) end
  end
  add('number', 1)
  for what, amount in pairs({tokens = tokens, requests = 1}) do
    give_back(what, -amount)
    add(what .. ':pending:' .. epoch, amount)
  end
  return {'0', get('number'), first, epoch}
end
"""


class RedisLimits(SharedLimits):
    """Limits shared through Redis. While Redis is unavailable, every gateway uses its own estimate."""

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=timeout_seconds,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 1),
        )
        self._redis = SharedRedis(
            Redis(connection_pool=pool), timeout_seconds=timeout_seconds, backoff_seconds=backoff_seconds
        )
        self._script = self._redis.client.register_script(_SCRIPT)
        self._prefix = f"agent_gateway:upstream:{hashlib.sha256(api_key.encode()).hexdigest()[:16]}"

    async def reserve_tokens(self, model: str, tokens: float) -> Reservation:
        """See `SharedLimits.reserve_tokens`."""
        reply = await self._run_script(model, "reserve", tokens)
        if reply is None:
            return Reservation(model, tokens)
        wait, number, first, epoch = reply
        return Reservation(model, tokens, float(wait), number, first == 1, epoch)

    async def report_response(
        self, reservation: Reservation, headers: RateLimitHeaders, *, refunded: bool, block: float
    ) -> None:
        """See `SharedLimits.report_response`."""
        if reservation.number:
            told = (*_encode_limit(headers.tokens), *_encode_limit(headers.requests))
            known = (reservation.number, int(reservation.first), reservation.epoch, int(refunded), block)
            await self._run_script(reservation.model, "answered", reservation.tokens, *known, *told)

    async def refund_tokens(self, reservation: Reservation, tokens: float) -> None:
        """See `SharedLimits.refund_tokens`."""
        if reservation.number:
            await self._run_script(reservation.model, "correct", tokens)

    async def close(self) -> None:
        await self._redis.client.aclose()

    async def _run_script(self, model: str, *arguments: str | float) -> Any:
        """The script's reply; None while Redis is unavailable."""
        asking = partial(self._script, keys=[f"{self._prefix}:{model}"], args=arguments)
        try:
            return await self._redis.call_redis("model_limits", asking)
        except RedisUnavailable:
            return None


def _encode_limit(told: LimitState | None) -> tuple[float | str, ...]:
    return ("", "", "") if told is None else (told.limit, told.remaining, told.rate)
