"""Faults that tests and operators inject into the simulator."""

from collections.abc import Iterator
from typing import Literal

import msgspec

from gateway.domain.messages import JsonObject
from gateway.simulator.request import Chat

FaultKind = Literal[
    "status",  # respond with `status`, `body` and `headers`
    "mid_stream_error",  # an `event: error` frame with `error` after `after_chunks`
    "data_error",  # the same error in a data frame
    "x_groq_error",  # the stream's last chunk carries `x_groq.error`
    "cut",  # the body ends early, without an error
    "abort",  # the connection breaks
    "slow_first_token",  # `seconds` of silence before the first chunk
    "stall",  # `seconds` of silence after `after_chunks`
    "endless",  # after `after_chunks`, the answer goes on for ever, `seconds` apart
    "no_done",  # no `[DONE]`, and the connection stays open for `seconds`
    "malformed_tool_call",  # tool_use_failed with `failed_generation`: as status, or mid-stream with `after_chunks`
    "unknown_tool",  # a call of an unknown tool
    "invalid_json_arguments",  # a call whose arguments are not valid JSON
    "bad_arguments",  # a call whose arguments violate the schema
    "garbage",  # a data line that is not valid JSON
    "split_frames",  # writes of 3 bytes, cut inside frames and characters
    "tool_calls",  # make `calls`
    "text",  # answer with `text`
]


class Fault(msgspec.Struct, kw_only=True):
    """A fault for the next `times` requests that match.

    The first `skip` matching requests have no fault. Model or prompt contain `match`.
    """

    kind: FaultKind
    times: int = 1
    skip: int = 0
    match: str = ""
    after_chunks: int = 0
    seconds: float = 3600.0
    status: int = 500
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    body: object = None
    error: object = None
    failed_generation: str = ""
    calls: list[JsonObject] = msgspec.field(default_factory=list[JsonObject])
    text: str = ""

    def applies_to(self, chat: Chat) -> bool:
        return self.times > 0 and (self.match in chat.last_user_text or self.match in chat.model)


class FaultPlan:
    """The scheduled faults.

    A request takes the first matching fault of each kind.
    """

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add_faults(self, *faults: Fault) -> None:
        self._faults.extend(faults)

    def clear_faults(self) -> None:
        self._faults.clear()

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def take_faults(self, chat: Chat) -> dict[str, Fault]:
        """Return a request's faults by kind, and count their use."""
        faults: dict[str, Fault] = {}
        for fault in self._faults:
            if fault.kind in faults or not fault.applies_to(chat):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.times -= 1
            faults[fault.kind] = fault
        self._faults = [fault for fault in self._faults if fault.times > 0]
        return faults
