"""What is left of a limit: what the model's server tells in its headers, and our own count from one answer to the next.

Groq lets what was used come back evenly. Its refusals show it: "Limit 6000, Used 5914, Requested 1822. Please try again
in 17.359s" are the 1736 tokens that lack, at 100 a second.
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
_ROUNDING = 1e-3
_MIN_USED_SHARE = 0.01


def parse_rate_limit_headers(headers: Mapping[str, str]) -> RateLimitHeaders:
    """Groq's limits out of a response: its tokens are a minute's, its requests a day's."""
    return RateLimitHeaders(
        _parse_limit_state(headers, "tokens", MINUTE_SECONDS),
        _parse_limit_state(headers, "requests", DAY_SECONDS),
        parse_duration(headers.get("retry-after")),
    )


def _parse_limit_state(headers: Mapping[str, str], resource: str, window: float) -> LimitState | None:
    limit = _parse_number(headers.get(f"x-ratelimit-limit-{resource}"))
    remaining = _parse_number(headers.get(f"x-ratelimit-remaining-{resource}"))
    if limit is None or remaining is None or limit <= 0:
        return None
    used, reset = limit - remaining, parse_duration(headers.get(f"x-ratelimit-reset-{resource}"))
    # Where little is used, rounding would make a wild rate of it.
    rate = used / reset if reset and used > limit * _MIN_USED_SHARE else limit / window
    return LimitState(limit, min(remaining, limit), rate)


def _parse_number(value: str | None) -> float | None:
    value = (value or "").strip()
    return float(value) if _NUMBER.fullmatch(value) else None


def parse_duration(value: str | None) -> float | None:
    """`2m59.56s`, `172.8ms` or plain seconds, a day at the most; None for what is none of these."""
    value = (value or "").strip()
    if (plain := _parse_number(value)) is not None:
        return min(plain, DAY_SECONDS) if plain >= 0 else None
    if not _DURATION.fullmatch(value):
        return None
    return min(sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(value)), DAY_SECONDS)


class TokenBucket:
    """Our count of one limit; without end until a response has told of it.

    `pending` is what was taken by calls that have no answer yet: an answer to another may or may not have seen them.
    """

    __slots__ = ("_at", "_level", "_limit", "_rate", "pending")

    def __init__(self) -> None:
        self._limit = self._level = math.inf
        self._rate = 1.0
        self._at = 0.0
        self.pending = 0.0

    def get_wait_seconds(self, amount: float, now: float, ahead: float = 0.0) -> float:
        """Seconds until `amount` can be taken, behind `ahead`. What is over the limit can be when all is there."""
        self._level = min(self._limit, self._level + self._rate * (now - self._at))
        self._at = now
        short = ahead + min(amount, self._limit) - self._level
        return short / self._rate if short > _ROUNDING else 0.0

    def take_tokens(self, amount: float) -> None:
        self._level -= amount
        self.pending += amount

    def refund(self, amount: float) -> None:
        """What was taken and not used; less than nothing is what was used beyond it."""
        self._level += amount

    def update_from_headers(self, state: LimitState, now: float, *, alone: bool) -> None:
        """Go by what a response tells. Only of a call that was `alone` under way is it the whole truth: else it can
        say that less is left, but more only if we knew in which order the server saw the calls."""
        self.get_wait_seconds(0, now)
        left = state.remaining - self.pending
        self._limit, self._rate = state.limit, state.rate
        self._level = left if alone else min(self._level, left)
