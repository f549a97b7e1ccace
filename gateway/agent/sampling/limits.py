"""Limits of sampling, and its refusal."""

import msgspec


class SamplingLimits(msgspec.Struct, frozen=True):
    """Limits of the model calls that servers ask for.

    `calls`: in one tool call. `tokens`: of one answer. `turn_tokens`: usage of a turn beyond which there are no more.
    """

    calls: int = 5
    tokens: int = 4_096
    turn_tokens: int = 200_000


class SamplingRefused(Exception):
    """Refusal of a model call for a server.

    `str()` is the reason, for the model of the turn. The server gets no reason.
    """
