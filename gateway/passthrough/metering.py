"""Usage of a request, read from the bytes of its answer."""

import re
from abc import ABC, abstractmethod

import msgspec

from gateway.domain.messages import JSON_DECODE_ERRORS, Usage

_TAIL_BYTES = 16 * 1024
_HEAD_BYTES = 1024
_MAX_TOKENS = 1_000_000_000
_MAX_SECONDS = 1_000_000.0
_MAX_NUMBER = 10**15
_READABLE_TYPES = ("application/json", "text/event-stream")
_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_DURATION = re.compile(rb'"duration"\s*:\s*"?(\d+(?:\.\d+)?)')
AUDIO_TOKENS_PER_SECOND = 10
"""Tokens of a second of audio, as OpenAI counts them."""
_AUDIO_BYTES_PER_SECOND = 16_000
"""Of audio whose duration nobody tells."""


class MeteredUsage(msgspec.Struct, frozen=True):
    """Tokens, and seconds of audio, of a request."""

    usage: Usage = Usage()
    audio_seconds: float = 0.0


class UsageMeter(ABC):
    """Reads the usage of a request from its answer.

    `estimate` is what the request may use at most.
    """

    def __init__(self, estimate: MeteredUsage) -> None:
        self.estimate = estimate
        self._head = b""
        self._tail = b""

    def feed(self, data: bytes) -> None:
        if len(self._head) < _HEAD_BYTES:
            self._head += data[: _HEAD_BYTES - len(self._head)]
        self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def read(self, content_type: str) -> MeteredUsage:
        """Return the usage that the answer tells; else the estimate."""
        if not content_type.lower().startswith(_READABLE_TYPES):
            return self.estimate
        found = _USAGE.findall(self._tail)
        reported: dict[str, object] = {}
        if found:
            try:
                reported = msgspec.json.decode(found[-1], type=dict[str, object])
            except JSON_DECODE_ERRORS:
                reported = {}
        return self._interpret(reported) or self.estimate

    @abstractmethod
    def _interpret(self, reported: dict[str, object]) -> MeteredUsage | None:
        """Return the reported usage; None without it."""
        ...


class TokenMeter(UsageMeter):
    """Usage in tokens."""

    def _interpret(self, reported: dict[str, object]) -> MeteredUsage | None:
        usage = read_tokens(reported)
        return MeteredUsage(usage) if usage is not None else None


class AudioMeter(UsageMeter):
    """Usage of a transcription: tokens, or seconds of audio."""

    def _interpret(self, reported: dict[str, object]) -> MeteredUsage | None:
        seconds = _read_number(reported.get("seconds"))
        if seconds is None and (found := _DURATION.search(self._head)):
            seconds = float(found[1])
        usage = read_tokens(reported)
        if usage is None and seconds is None:
            return None
        seconds = min(seconds or 0.0, _MAX_SECONDS)
        return MeteredUsage(usage or count_audio_tokens(seconds), seconds)


def read_tokens(reported: dict[str, object]) -> Usage | None:
    """Read counts of tokens in any of the servers' words."""
    prompt = _read_count(reported, "prompt_tokens", "input_tokens")
    answer = _read_count(reported, "completion_tokens", "output_tokens")
    total = _read_count(reported, "total_tokens")
    if prompt is None and total is None:
        return None
    if prompt is None:
        prompt = max(0, (total or 0) - (answer or 0))
    return Usage(prompt, answer or 0, max(total or 0, prompt + (answer or 0)))


def count_audio_tokens(seconds: float) -> Usage:
    tokens = int(seconds * AUDIO_TOKENS_PER_SECOND)
    return Usage(tokens, 0, tokens)


def estimate_audio(size: int) -> MeteredUsage:
    """Estimate the usage of a recording of `size` bytes."""
    seconds = size / _AUDIO_BYTES_PER_SECOND
    return MeteredUsage(count_audio_tokens(seconds), seconds)


def _read_count(reported: dict[str, object], *names: str) -> int | None:
    values = (_read_number(reported.get(name)) for name in names)
    value = next((value for value in values if value is not None), None)
    return None if value is None else int(min(value, _MAX_TOKENS))


def _read_number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(min(value, _MAX_NUMBER))  # an integer of any length
    return None
