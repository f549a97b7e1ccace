"""How the simulator misbehaves when it is told to."""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from gateway.simulator.request import Chat

FaultKind = Literal[
    "status",  # answer `status` with `body` and `headers`
    "mid_stream_error",  # an `event: error` frame with `error` after `after_chunks`
    "data_error",  # the same as plain data
    "x_groq_error",  # the stream's last chunk carries `x_groq.error`
    "cut",  # the body ends early, cleanly
    "abort",  # the connection breaks
    "slow_first_token",  # `seconds` of silence before the first chunk
    "stall",  # `seconds` of silence after `after_chunks`
    "malformed_tool_call",  # tool_use_failed with `failed_generation`: as status, or mid-stream with `after_chunks`
    "unknown_tool",  # a call to a tool that was not offered
    "invalid_json_arguments",  # a call whose arguments are no JSON
    "bad_arguments",  # a call whose arguments do not fit the schema
    "garbage",  # a data line that is no JSON
    "split_frames",  # the bytes in pieces of 3, cut inside frames and characters
    "tool_calls",  # make `calls`
    "text",  # say `text`
]


class Fault(msgspec.Struct, kw_only=True):
    """One way to misbehave, for the next `times` requests whose model or prompt contains `match`."""

    kind: FaultKind
    times: int = 1
    match: str = ""
    after_chunks: int = 0
    seconds: float = 3600.0
    status: int = 500
    headers: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    body: Any = None
    error: Any = None
    failed_generation: str = ""
    calls: list[dict[str, Any]] = msgspec.field(default_factory=list[dict[str, Any]])
    text: str = ""

    def applies_to(self, chat: Chat) -> bool:
        return self.times > 0 and (self.match in chat.last_user_text or self.match in chat.model)


class FaultPlan:
    """The faults to come. Each request takes the first of each kind that concerns it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add_faults(self, *faults: Fault) -> None:
        self._faults.extend(faults)

    def clear_faults(self) -> None:
        self._faults.clear()

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def take_faults(self, chat: Chat) -> dict[str, Fault]:
        """The faults of this request by kind, used up by one."""
        taken: dict[str, Fault] = {}
        for fault in self._faults:
            if fault.kind not in taken and fault.applies_to(chat):
                fault.times -= 1
                taken[fault.kind] = fault
        self._faults = [fault for fault in self._faults if fault.times > 0]
        return taken
