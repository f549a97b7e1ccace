"""Token buckets of one limit.

They are set from a response's headers and counted here until the next response. Groq refills a limit evenly. Its
rejections show it: "Limit 6000, Used 5914, Requested 1822. Please try again in 17.359s" are the 1736 missing tokens, at
100 per second.
"""

import math
import re
from collections.abc import Mapping

from gateway.ports.rate_limit import LimitState, RateLimitHeaders

MINUTE_SECONDS = 60.0
DAY_SECONDS = 86_400.0

_UNIT_SECONDS = {
    "d": DAY_SECONDS,
    "h": 3600.0,
    "m": MINUTE_SECONDS,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|[dhms])", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d*)?", re.ASCII)
_ROUNDING_TOLERANCE = 1e-3
_MIN_USED_SHARE = 0.01


def parse_rate_limit_headers(headers: Mapping[str, str]) -> RateLimitHeaders:
    """Parse Groq's headers: token limits are per minute, request limits per day."""
    return RateLimitHeaders(
        _parse_limit_state(headers, "tokens", MINUTE_SECONDS),
        _parse_limit_state(headers, "requests", DAY_SECONDS),
        parse_duration(headers.get("retry-after")),
    )


def _parse_limit_state(headers: Mapping[str, str], resource: str, window: float) -> LimitState | None:
    limit = _parse_number(headers.get(f"x-ratelimit-limit-{resource}"))
    if limit is None or limit <= 0:
        return None
    remaining = _parse_number(headers.get(f"x-ratelimit-remaining-{resource}"))
    if remaining is None:
        return None
    used, reset = limit - remaining, parse_duration(headers.get(f"x-ratelimit-reset-{resource}"))
    # With little used, rounding in the headers would distort the rate.
    rate = used / reset if reset and used > limit * _MIN_USED_SHARE else limit / window
    return LimitState(limit, min(remaining, limit), rate)


def _parse_number(value: str | None) -> float | None:
    if value is None:
        return None
    value = value.strip()
    return float(value) if _NUMBER.fullmatch(value) else None


def parse_duration(value: str | None) -> float | None:
    """Seconds in `2m59.56s`, `172.8ms` or `12`, at most a day.

    None for anything else.
    """
    if value is None:
        return None
    value = value.strip()
    if (seconds := _parse_number(value)) is not None:
        return min(seconds, DAY_SECONDS) if seconds >= 0 else None
    if not _DURATION.fullmatch(value):
        return None
    return min(sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(value)), DAY_SECONDS)


class TokenBucket:
    """Estimate of one limit; unlimited until a response has reported the limit.

    `pending` counts what calls without a response have taken: the headers of other responses may not include it.
    """

    __slots__ = ("_level", "_limit", "_rate", "_updated_at", "pending")

    def __init__(self) -> None:
        self._limit = self._level = math.inf
        self._rate = 1.0
        self._updated_at = 0.0
        self.pending = 0.0

    def get_wait_seconds(self, amount: float, now: float, ahead: float = 0.0) -> float:
        """Seconds until `amount` can be taken after `ahead`.

        An amount over the limit needs a full bucket.
        """
        self._level = min(self._limit, self._level + self._rate * (now - self._updated_at))
        self._updated_at = now
        missing_amount = ahead + min(amount, self._limit) - self._level
        return missing_amount / self._rate if missing_amount > _ROUNDING_TOLERANCE else 0.0

    def take_tokens(self, amount: float) -> None:
        self._level -= amount
        self.pending += amount

    def refund(self, amount: float) -> None:
        """Return an unused amount; a negative one was used in addition."""
        self._level += amount

    def update_from_headers(self, state: LimitState, now: float, *, alone: bool) -> None:
        """Adopt the state in a response's headers.

        With calls in flight (not `alone`), headers may lower our estimate but not raise it: response order is unknown.
        """
        self.get_wait_seconds(0, now)
        level = state.remaining - self.pending
        self._limit, self._rate = state.limit, state.rate
        self._level = level if alone else min(self._level, level)
