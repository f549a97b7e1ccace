"""Turns that come from another turn: forks and replays. See docs/adr/0026."""

from typing import Literal
from uuid import UUID

import msgspec

OnNewCall = Literal["stop", "run_read_only", "run"]
ResultSource = Literal["recorded", "replaced", "not_run"]
"""Source of a result that no tool returned during the turn.

`recorded`: from the journal of another turn. `replaced`: from the request of the fork. `not_run`: the tool was not
called, because a replay stops there.
"""
NEW_CALL = "new_call"
"""Finish reason of a replay that stopped at a new call.

The recorded turn did not make that call.
"""

NO_TURN = UUID(int=0)
"""`parent_turn_id` of a branch that follows no turn of its conversation."""


class ReplacedResult(msgspec.Struct, frozen=True):
    """Text that replaces the result of a tool in a fork."""

    text: str
    outcome: Literal["ok", "error"] = "ok"


class FollowUp(msgspec.Struct, frozen=True):
    """A user's message after a step of the turn."""

    after_step: int
    text: str


class TurnOrigin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The turn that a fork or replay comes from.

    The first `after_step` steps are taken over from its journal, with `results` in place of recorded ones, by call id.
    `on_new_call` makes it a replay: the results of the later steps answer equal calls, and it decides about others.
    """

    turn_id: UUID
    after_step: int = 0
    on_new_call: OnNewCall | None = None
    results: dict[str, ReplacedResult] = msgspec.field(default_factory=dict[str, ReplacedResult])

    @property
    def is_replay(self) -> bool:
        return self.on_new_call is not None


class TurnBranch(msgspec.Struct, frozen=True):
    """Changes that a fork or replay makes.

    None: as in the turn that it comes from. A fork takes over the first `after_step` steps; None takes over what the
    turn itself has taken over. After step 0, `message` replaces the prompt; after a later step it follows that step.
    `system` replaces the request's own.
    """

    after_step: int | None = None
    message: str | None = None
    model: str | None = None
    system: str | None = None
    results: dict[str, ReplacedResult] = msgspec.field(default_factory=dict[str, ReplacedResult])
    on_new_call: OnNewCall | None = None
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    idempotency_key: str | None = None


class OriginNote(msgspec.Struct, frozen=True):
    """The origin of a turn as its first event tells it."""

    kind: Literal["fork", "replay"]
    turn_id: str
    after_step: int
