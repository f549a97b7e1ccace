"""Circuit breakers of models, and their limits."""

from collections.abc import Callable

import msgspec

from gateway.ports.model import ModelState


class RetryPolicy(msgspec.Struct, frozen=True):
    """Limits of retries and of the circuit breaker. Times in seconds.

    At most `text_call_chars` of a text are held back while it may be a call; 0: none. `retries` follow errors,
    `repairs` invalid tool calls. The delay doubles from `delay` to `max_wait`. After
    `failure_threshold` errors in a row, the circuit is open for `open_seconds`, which doubles up to `max_open_seconds`.
    """

    retries: int = 2
    repairs: int = 2
    text_call_chars: int = 2_000
    delay: float = 0.5
    max_wait: float = 10.0
    failure_threshold: int = 5
    open_seconds: float = 10.0
    max_open_seconds: float = 120.0


class CircuitBreaker:
    """Circuit breaker of one model.

    After `open_seconds`, one trial call decides whether it closes.
    """

    def __init__(self, policy: RetryPolicy, now: Callable[[], float]) -> None:
        self._policy = policy
        self._now = now
        self._failures = 0
        self._open_seconds = policy.open_seconds
        self._open_until = 0.0

    def check_wait(self) -> float:
        """Return the seconds until the model may be called.

        0: now. Then one caller per `open_seconds` gets 0.
        """
        if self._failures < self._policy.failure_threshold:
            return 0.0
        wait = self._open_until - self._now()
        if wait <= 0:
            self._open_until = self._now() + self._open_seconds
            return 0.0
        return wait

    @property
    def is_open(self) -> bool:
        return self._failures >= self._policy.failure_threshold and self._now() < self._open_until

    def describe(self, model: str) -> ModelState:
        """Return the state without using up the trial call."""
        wait = max(0.0, self._open_until - self._now()) if self.is_open else 0.0
        return ModelState(model, self._failures, self.is_open, wait)

    def record_success(self) -> None:
        self._failures, self._open_seconds = 0, self._policy.open_seconds

    def record_failure(self) -> None:
        self._failures += 1
        if self._failures > self._policy.failure_threshold:
            self._open_seconds = min(self._open_seconds * 2, self._policy.max_open_seconds)
        if self._failures >= self._policy.failure_threshold:
            self._open_until = self._now() + self._open_seconds
