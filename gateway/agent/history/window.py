"""Selects the turns of a history that fit into the model's context."""

from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec

from gateway.domain.events import HistorySummarized
from gateway.domain.history import History, HistoryNote, HistorySummary, HistoryTurn
from gateway.domain.messages import Message
from gateway.domain.tokens import estimate_message_tokens
from gateway.ports.model import ModelInfo

RESERVED_SHARE = 0.1
"""Share of the context window that covers errors of the estimates."""
_MAX_SUMMARY_TOKENS = 2_048
_MIN_SUMMARY_TOKENS = 64


class HistoryOverflow(msgspec.Struct, frozen=True):
    """Turns that the model must summarize before the first step.

    `earlier` is the summary of the turns before them. `prompt_tokens`, by the estimate, bounds the texts of the request
    for the summary, `max_tokens` the summary.
    """

    turns: tuple[HistoryTurn, ...]
    earlier: HistorySummary | None
    prompt_tokens: int
    max_tokens: int

    @property
    def through_turn_id(self) -> UUID:
        return self.turns[-1].id

    @property
    def summarized_turns(self) -> int:
        return len(self.turns) + (self.earlier.turns if self.earlier else 0)


class HistoryWindow(msgspec.Struct, frozen=True):
    """The part of a history that the model gets.

    That is a summary, or an overflow to be summarized, and the turns after it.
    """

    turns: tuple[HistoryTurn, ...] = ()
    summary: HistorySummary | None = None
    overflow: HistoryOverflow | None = None
    is_cut: bool = False

    @property
    def messages(self) -> tuple[Message, ...]:
        """Messages without the summary that is to be made."""
        messages = tuple(message for turn in self.turns for message in turn.messages)
        return (build_summary_message(self.summary), *messages) if self.summary and not self.overflow else messages

    @property
    def note(self) -> HistoryNote | msgspec.UnsetType:
        """Description for the turn's first event."""
        if self.overflow is not None:
            return HistoryNote(len(self.turns), self.overflow.summarized_turns, "new", self.is_cut)
        if self.summary is not None:
            return HistoryNote(len(self.turns), self.summary.turns, "stored", self.is_cut)
        return HistoryNote(len(self.turns), 0, None, is_cut=True) if self.is_cut else msgspec.UNSET

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about the history for people."""
        warnings: list[str] = []
        if self.overflow is not None:
            warnings.append(
                f"The first {self.overflow.summarized_turns} turns of this conversation do not fit into the model's "
                "context. A summary by the model replaces them."
            )
        elif self.summary is not None:
            warnings.append(f"A summary replaces the first {self.summary.turns} turns of this conversation.")
        if self.is_cut:
            warnings.append("The oldest turns of this conversation are left out.")
        return tuple(warnings)


def build_summary_message(summary: HistorySummary) -> Message:
    """Build the message that stands for summarized turns.

    It is the user's: texts of users and tools must not get the weight of the system prompt.
    """
    return Message("user", f"[Summary of the first {summary.turns} turns of this conversation]\n\n{summary.text}")


def fit_history(
    history: History,
    fixed_tokens: int,
    model: ModelInfo,
    max_tokens: int | None,
    made_summary: HistorySummarized | None = None,
    count_tokens: Callable[[Message], int] = estimate_message_tokens,
) -> HistoryWindow:
    """Select the turns that fit into the context window.

    The window must also hold the prompt and tools, of `fixed_tokens`, and the answer of `max_tokens`. `made_summary` is
    the one that this turn has made. Each message is counted once, the newest ones first.
    """
    window = int(model.context_window * (1 - RESERVED_SHARE))
    available = (
        window
        - min(max_tokens or model.max_output_tokens, model.max_output_tokens, model.context_window // 4)
        - fixed_tokens
    )
    summary, turns, is_cut = _apply_summary(history, made_summary)
    tokens = [sum(map(count_tokens, turn.messages)) for turn in reversed(turns)][::-1]
    summary_tokens = count_tokens(build_summary_message(summary)) if summary else 0
    if summary_tokens + sum(tokens) <= available and not (history.is_full and made_summary is None):
        return HistoryWindow(turns, summary, is_cut=is_cut)
    max_summary = min(_MAX_SUMMARY_TOKENS, available // 4, model.max_output_tokens)
    if max_summary < _MIN_SUMMARY_TOKENS:  # no summary would fit either
        kept = turns[len(turns) - _count_fitting(tokens, available) :]
        return HistoryWindow(kept, is_cut=is_cut or len(kept) < len(turns) or summary is not None)
    # Half of the window stays free, or each of the next turns would need a summary.
    kept_count = min(
        _count_fitting(tokens, (available - max_summary) // 2), len(turns) // 2 if history.is_full else len(turns)
    )
    if not kept_count and len(turns) > 1 and tokens[-1] <= available - max_summary:
        kept_count = 1
    older = turns[: len(turns) - kept_count]
    if not older:
        return HistoryWindow(turns, summary, is_cut=is_cut)
    counted, estimated = sum(tokens[: len(older)]), _estimate_turns(older)
    prompt_tokens = (window - max_summary) * estimated // max(counted, estimated, 1)
    overflow = HistoryOverflow(older, summary, prompt_tokens, max_summary)
    return HistoryWindow(turns[len(older) :], summary, overflow, is_cut)


def _apply_summary(
    history: History, made: HistorySummarized | None
) -> tuple[HistorySummary | None, tuple[HistoryTurn, ...], bool]:
    """Return the newest summary and the answered turns after it.

    The last value tells whether older turns are cut.
    """
    turns = tuple(turn for turn in history.turns if turn.messages)
    if made is None:
        summary = next((turn.summary for turn in reversed(history.turns) if turn.summary is not None), None)
        return summary, turns, history.is_cut
    through = UUID(made.through_turn_id)
    index = next((number for number, turn in enumerate(turns, 1) if turn.id == through), 0)
    summary = HistorySummary(made.text, made.turns, through) if made.text else None
    return summary, turns[index:], history.is_cut or bool(made.cut_turns)


def _estimate_turns(turns: Sequence[HistoryTurn]) -> int:
    return sum(estimate_message_tokens(message) for turn in turns for message in turn.messages)


def _count_fitting(tokens: Sequence[int], limit: int) -> int:
    """Count the last items whose sum is within a limit."""
    count = 0
    for item in reversed(tokens):
        limit -= item
        if limit < 0:
            break
        count += 1
    return count
