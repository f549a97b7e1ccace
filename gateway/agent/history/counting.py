"""Tokens of a prompt, by the model's tokenizer if there is one."""

import asyncio
from collections.abc import Callable, Sequence

from gateway.agent.history.window import HistoryWindow, fit_history
from gateway.domain.events import HistorySummarized
from gateway.domain.history import History
from gateway.domain.messages import Message, ToolSpec
from gateway.domain.tokens import (
    CHARS_PER_TOKEN,
    bound_message_tokens,
    count_message_tokens,
    estimate_message_tokens,
    estimate_text_tokens,
)
from gateway.ports.model import ModelCall, ModelInfo
from gateway.ports.tokenizers import Tokenizer

_SAFE_SHARE = 0.6
"""Share of a context window beside the answer and the reserve."""
_MAX_COUNTED_WINDOWS = 8


class PromptCounter:
    """Counts prompts by the model's tokenizer, or estimates their tokens.

    A tokenizer takes time in proportion to the text, so it runs in a thread, and not for histories that certainly fit.
    It counts a multiple of the context window at most; the rest is estimated.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    async def fit_history(
        self,
        history: History,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        model: ModelInfo,
        max_tokens: int | None,
        made_summary: HistorySummarized | None,
    ) -> HistoryWindow:
        """Select the turns that fit beside the other messages and the tools."""
        tool_tokens = _estimate_tools(tools)

        def fit(count: Callable[[Message], int]) -> HistoryWindow:
            fixed_tokens = sum(map(count, messages)) + tool_tokens
            return fit_history(history, fixed_tokens, model, max_tokens, made_summary, count)

        count_text = self._find_counter(model)
        if count_text is None or _certainly_fits(history, messages, tool_tokens, model):
            return fit(estimate_message_tokens)
        return await asyncio.to_thread(fit, lambda message: count_message_tokens(message, count_text))

    async def count_prompt(self, call: ModelCall, model: ModelInfo) -> int:
        """Count the tokens of a prompt."""
        count_text = self._find_counter(model)
        if count_text is None:
            return call.estimated_tokens

        def count() -> int:
            return sum(count_message_tokens(message, count_text) for message in call.messages)

        return await asyncio.to_thread(count) + _estimate_tools(call.tools)

    def _find_counter(self, model: ModelInfo) -> Callable[[str], int] | None:
        tokenizer = self._tokenizer
        if tokenizer is None or not tokenizer.supports(model.id):
            return None
        remaining = _MAX_COUNTED_WINDOWS * model.context_window

        def count_text(text: str) -> int:
            nonlocal remaining
            remaining -= len(text)
            return estimate_text_tokens(text) if remaining < 0 else tokenizer.count_text(text)

        return count_text


def _estimate_tools(tools: Sequence[ToolSpec]) -> int:
    """Estimate the tokens of tools.

    The model's server writes them in a form of its own.
    """
    return sum(tool.prompt_chars for tool in tools) // CHARS_PER_TOKEN


def _certainly_fits(history: History, messages: Sequence[Message], tool_tokens: int, model: ModelInfo) -> bool:
    if history.is_full:
        return False
    limit = int(model.context_window * _SAFE_SHARE) - tool_tokens
    for message in messages:
        limit -= bound_message_tokens(message)
    for turn in history.turns:
        for message in turn.messages:
            limit -= bound_message_tokens(message)
            if limit < 0:
                return False
        if turn.summary is not None:
            limit -= 4 * len(turn.summary.text)
    return limit >= 0
