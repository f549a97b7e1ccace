"""Rate limits of one API key, shared through Redis.

Several gateways call the same model server with the key. One hash per model has the fields of two `TokenBucket`s. A Lua
script changes it atomically, with Redis's clock: arguments and replies contain only durations.
"""

import hashlib
from functools import partial
from typing import cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.common.redis import BACKOFF_SECONDS, TIMEOUT_SECONDS, RedisUnavailable, SharedRedis
from gateway.ports.rate_limit import LimitState, RateLimitHeaders, Reservation, SharedLimits

_MAX_CONNECTIONS = 32
_ScriptReply = tuple[bytes, int, int, int]
"""Reply to a reservation; None for other operations.

It has the seconds to wait, the number, 1 if no other call is in flight, and the epoch.
"""

# Pending amounts expire after two epochs: those of a crashed gateway would count for ever.
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
local function refund(resource, amount)
  if state[resource .. ':limit'] then add(resource .. ':level', amount) end
end
local function pending(resource)
  return get(resource .. ':pending:' .. epoch) + get(resource .. ':pending:' .. (epoch - 1))
end
local function settle(resource, amount, at)
  local name = resource .. ':pending:' .. at
  if state[name] then set(name, math.max(0, state[name] - amount)) end
end
local function update_limit(resource, limit, remaining, rate, alone)
  if not limit then return end
  local level = remaining - pending(resource)
  if state[resource .. ':limit'] and not alone then level = math.min(level, get(resource .. ':level')) end
  set(resource .. ':limit', limit)
  set(resource .. ':level', level)
  set(resource .. ':rate', rate)
end

local elapsed = math.max(0, now - (state.at or now))
for _, resource in ipairs({'tokens', 'requests'}) do
  local limit = state[resource .. ':limit']
  if limit then
    set(resource .. ':level', math.min(limit, get(resource .. ':level') + get(resource .. ':rate') * elapsed))
  end
end
set('at', now)
redis.call('EXPIRE', key, 2 * 86400)

if op == 'refund' then
  refund('tokens', tokens)

elseif op == 'settle' then
  local number, first, at, refunded, block = tonumber(ARGV[3]), ARGV[4] == '1', tonumber(ARGV[5]), ARGV[6], ARGV[7]
  settle('tokens', tokens, at)
  settle('requests', 1, at)
  if refunded == '1' then
    refund('tokens', tokens)
    refund('requests', 1)
  end
  local alone = first and number == get('number')
  update_limit('tokens', tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), alone)
  update_limit('requests', tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), alone)
  if tonumber(block) > 0 then set('blocked', math.max(get('blocked'), now + block)) end

else
  local wait = get('blocked') - now
  for resource, amount in pairs({tokens = tokens, requests = 1}) do
    local limit = state[resource .. ':limit']
    local missing = limit and math.min(amount, limit) - get(resource .. ':level') or 0
    if missing > 0.001 then wait = math.max(wait, missing / get(resource .. ':rate')) end
  end
  if wait > 0 then return {string.format('%.6f', wait), 0, 0, 0} end
  local first = pending('requests') == 0 and 1 or 0
  for name in pairs(state) do
    local written = tonumber(string.match(name, ':pending:(%d+)$'))
    if written and written < epoch - 1 then redis.call('HDEL', key, name) end
  end
  add('number', 1)
  for resource, amount in pairs({tokens = tokens, requests = 1}) do
    refund(resource, -amount)
    add(resource .. ':pending:' .. epoch, amount)
  end
  return {'0', get('number'), first, epoch}
end
"""


class RedisLimits(SharedLimits):
    """Limits shared through Redis.

    While Redis is unavailable, every gateway uses its own estimate.
    """

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
            state = (reservation.number, int(reservation.first), reservation.epoch, int(refunded), block)
            limits = (*_encode_limit(headers.tokens), *_encode_limit(headers.requests))
            await self._run_script(reservation.model, "settle", reservation.tokens, *state, *limits)

    async def refund_tokens(self, reservation: Reservation, tokens: float) -> None:
        """See `SharedLimits.refund_tokens`."""
        if reservation.number:
            await self._run_script(reservation.model, "refund", tokens)

    async def close(self) -> None:
        await self._redis.client.aclose()

    async def _run_script(self, model: str, *arguments: str | float) -> _ScriptReply | None:
        """Return the script's reply; None while Redis is unavailable."""
        run = partial(self._script, keys=[f"{self._prefix}:{model}"], args=arguments)
        try:
            return cast(_ScriptReply | None, await self._redis.call_redis("model_limits", run))
        except RedisUnavailable:
            return None


def _encode_limit(state: LimitState | None) -> tuple[float | str, ...]:
    return ("", "", "") if state is None else (state.limit, state.remaining, state.rate)
