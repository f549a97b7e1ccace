"""Estimates of tokens by script."""

import pytest

from gateway.domain.messages import Message, ToolCall
from gateway.domain.tokens import estimate_message_tokens, estimate_text_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The weather is fine today, let us take a walk in the park.", 14),
        ("Die künstliche Intelligenz verändert unser Leben. Heute ist das Wetter schön.", 17),
        ("Искусственный интеллект меняет наш образ жизни. Сегодня прекрасная погода.", 18),
        ("人工智能正在改变我们的生活方式。今天的天气非常好。我们一起去公园散步吧。", 24),
        ("人工知能は私たちの生活を変えています。今日はとても天気がいいので、散歩しましょう。", 28),
        ("인공지능은 우리의 생활 방식을 바꾸고 있습니다. 오늘 날씨가 아주 좋습니다.", 25),
        ("😀🎉🚀👍🏽", 8),
    ],
    ids=["English", "German", "Russian", "Chinese", "Japanese", "Korean", "emoji"],
)
def test_estimate_is_near_the_count_of_a_tokenizer(text: str, tokens: int) -> None:
    """The counts are those of o200k, the vocabulary of gpt-oss."""
    assert 0.7 * tokens <= estimate_text_tokens(text) <= 2 * tokens


def test_long_text_is_estimated_from_samples() -> None:
    mixed = "人工智能正在改变我们的生活方式。" * 1_000 + "English follows. " * 1_000
    parts = [mixed[start : start + 1_000] for start in range(0, len(mixed), 1_000)]
    assert estimate_text_tokens(mixed) == pytest.approx(sum(map(estimate_text_tokens, parts)), rel=0.1)
    assert estimate_text_tokens("\ud83d" * 10_000) > 0  # a lone surrogate of a tool


def test_calls_of_a_message_count() -> None:
    call = ToolCall("c1", "write", '{"text": "' + "x" * 4_000 + '"}')
    assert estimate_message_tokens(Message("assistant", tool_calls=(call,))) > 1_000
