"""What is left of a limit: what the model's server tells in its headers, and our own count from one answer to the next.

Groq lets what was used come back evenly. Its refusals show it: "Limit 6000, Used 5914, Requested 1822. Please try again
in 17.359s" are the 1736 tokens that lack, at 100 a second.
"""

import math
import re
from collections.abc import Mapping

import msgspec

MINUTE = 60.0
DAY = 86_400.0

_UNITS = {"d": DAY, "h": 3600.0, "m": MINUTE, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|[dhms])", re.ASCII)
_DURATION = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d*)?", re.ASCII)
_ROUNDING = 1e-3
_TELLING_SHARE = 0.01


class Told(msgspec.Struct, frozen=True):
    """One limit as a response tells it: `remaining` of `limit`, and how much comes back in a second."""

    limit: float
    remaining: float
    rate: float


class Reading(msgspec.Struct, frozen=True):
    """What the headers of a response tell. None: nothing that can be read."""

    tokens: Told | None = None
    requests: Told | None = None
    retry_after: float | None = None


def read_headers(headers: Mapping[str, str]) -> Reading:
    """Groq's limits out of a response: its tokens are a minute's, its requests a day's."""
    return Reading(
        _told(headers, "tokens", MINUTE), _told(headers, "requests", DAY), seconds(headers.get("retry-after"))
    )


def _told(headers: Mapping[str, str], what: str, window: float) -> Told | None:
    limit = _number(headers.get(f"x-ratelimit-limit-{what}"))
    remaining = _number(headers.get(f"x-ratelimit-remaining-{what}"))
    if limit is None or remaining is None or limit <= 0:
        return None
    used, reset = limit - remaining, seconds(headers.get(f"x-ratelimit-reset-{what}"))
    # Where little is used, rounding would make a wild rate of it.
    rate = used / reset if reset and used > limit * _TELLING_SHARE else limit / window
    return Told(limit, min(remaining, limit), rate)


def _number(value: str | None) -> float | None:
    value = (value or "").strip()
    return float(value) if _NUMBER.fullmatch(value) else None


def seconds(value: str | None) -> float | None:
    """`2m59.56s`, `172.8ms` or plain seconds, a day at the most; None for what is none of these."""
    value = (value or "").strip()
    if (plain := _number(value)) is not None:
        return min(plain, DAY) if plain >= 0 else None
    if not _DURATION.fullmatch(value):
        return None
    return min(sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(value)), DAY)


class Budget:
    """Our count of one limit; without end until a response has told of it.

    `pending` is what was taken by calls that have no answer yet: an answer to another may or may not have seen them.
    """

    __slots__ = ("_at", "_level", "_limit", "_rate", "pending")

    def __init__(self) -> None:
        self._limit = self._level = math.inf
        self._rate = 1.0
        self._at = 0.0
        self.pending = 0.0

    def wait(self, amount: float, now: float, ahead: float = 0.0) -> float:
        """Seconds until `amount` can be taken, behind `ahead`. What is over the limit can be when all is there."""
        self._level = min(self._limit, self._level + self._rate * (now - self._at))
        self._at = now
        short = ahead + min(amount, self._limit) - self._level
        return short / self._rate if short > _ROUNDING else 0.0

    def take(self, amount: float) -> None:
        self._level -= amount
        self.pending += amount

    def give_back(self, amount: float) -> None:
        """What was taken and not used; less than nothing is what was used beyond it."""
        self._level += amount

    def learn(self, told: Told, now: float, *, alone: bool) -> None:
        """Go by what a response tells. Only of a call that was `alone` under way is it the whole truth: else it can
        say that less is left, but more only if we knew in which order the server saw the calls."""
        self.wait(0, now)
        left = told.remaining - self.pending
        self._limit, self._rate = told.limit, told.rate
        self._level = left if alone else min(self._level, left)
