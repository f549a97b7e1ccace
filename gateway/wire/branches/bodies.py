"""Bodies of the requests for forks and replays."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from gateway.domain.branches import OnNewCall, ReplacedResult, TurnBranch
from gateway_runtime.requests.model import RequestModel, limit_entries

_Text = Annotated[str, StringConstraints(min_length=1, max_length=1_000_000)]
_ResultText = Annotated[str, StringConstraints(max_length=1_000_000)]
_MAX_RESULTS = 200


class ToolResultBody(RequestModel):
    """Result that the model gets instead of what a tool said."""

    text: _ResultText
    outcome: Literal["ok", "error"] = "ok"


class BranchFields(RequestModel):
    """Options of forks and replays."""

    model: str | None = Field(default=None, min_length=1, max_length=200, description="Default: the turn's model.")
    stream: bool = Field(default=False, description="Stream the events, or return one answer.")
    on_disconnect: Literal["cancel", "continue"] = "cancel"


class ForkRequest(BranchFields):
    """Fork of a turn."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"after_step": 2, "message": "Now in euros."}]})

    after_step: int = Field(
        ge=0,
        le=10_000,
        description="Number of the last step that is taken over. 0: none; the turn starts again, with `message` as its "
        "prompt if there is one.",
    )
    message: _Text | None = Field(default=None, description="Message of the user after that step.")
    results: Annotated[dict[str, _ResultText | ToolResultBody], limit_entries(_MAX_RESULTS)] = Field(
        default={},
        description="By call id, what the model gets instead of what the tool said: a text, or `text` and `outcome`. "
        "Only of calls in the steps that are taken over.",
    )

    def to_branch(self, idempotency_key: str | None) -> TurnBranch:
        results: dict[str, Any] = self.results
        return TurnBranch(
            after_step=self.after_step,
            message=self.message,
            model=self.model,
            results={
                call_id: ReplacedResult(result)
                if isinstance(result, str)
                else ReplacedResult(result.text, result.outcome)
                for call_id, result in results.items()
            },
            on_disconnect=self.on_disconnect,
            idempotency_key=idempotency_key,
        )


class ReplayRequest(BranchFields):
    """Replay of a turn with its recorded tool results."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "openai/gpt-oss-20b", "on_new_call": "stop"}]})

    message: _Text | None = Field(default=None, description="Replaces the turn's prompt.")
    system: _Text | None = Field(default=None, description="Replaces the `system` of the turn's request.")
    on_new_call: OnNewCall = Field(
        default="stop",
        description="When the model makes a call that the turn did not make: end the replay, run only read-only tools, "
        "or run every tool. Equal calls get the recorded results, and no tool is called for them.",
    )

    def to_branch(self, idempotency_key: str | None) -> TurnBranch:
        return TurnBranch(
            message=self.message,
            model=self.model,
            system=self.system,
            on_new_call=self.on_new_call,
            on_disconnect=self.on_disconnect,
            idempotency_key=idempotency_key,
        )
