"""Tokens of texts and messages, counted or estimated by script. See docs/adr/0027."""

from collections.abc import Callable

from gateway.domain.messages import Message

_MAX_COUNTED_CHARS = 4_096
_SAMPLES = 16
_SAMPLE_CHARS = _MAX_COUNTED_CHARS // _SAMPLES
CHARS_PER_TOKEN = 4
IMAGE_TOKENS = 1_000
"""Estimate of an image, whose size in pixels nobody reads here."""
_MESSAGE_OVERHEAD = 8
_CALL_OVERHEAD = 12
_QUARTERS_BY_WIDTH = (1, 1.6, 3, 8)
"""Quarters of a token per character, by its bytes in UTF-8.

1: English and code. 2: Greek, Cyrillic, Arabic, and letters with accents. 3: Chinese, Japanese, Korean, and the scripts
of India. 4: emoji, rare characters.
"""


def estimate_text_tokens(text: str) -> int:
    """Estimate the tokens of a text."""
    return count_quarters(text) // CHARS_PER_TOKEN


def estimate_message_tokens(message: Message) -> int:
    """Estimate the tokens of a message with its calls."""
    return count_message_quarters(message) // CHARS_PER_TOKEN + _MESSAGE_OVERHEAD


def count_message_tokens(message: Message, count_text: Callable[[str], int]) -> int:
    """Count the tokens of a message with its calls by a tokenizer."""
    tokens = count_text(message.text) + _MESSAGE_OVERHEAD
    for call in message.tool_calls:
        tokens += count_text(call.name) + count_text(call.arguments) + _CALL_OVERHEAD
    return tokens


def bound_message_tokens(message: Message) -> int:
    """Return an upper bound of the tokens of a message.

    Each byte is a token at most.
    """
    texts = [message.text, *(text for call in message.tool_calls for text in (call.name, call.arguments))]
    overhead = _MESSAGE_OVERHEAD + _CALL_OVERHEAD * len(message.tool_calls)
    return sum(len(text) if text.isascii() else 4 * len(text) for text in texts) + overhead


def count_message_quarters(message: Message) -> int:
    """Count quarters of tokens of a message with its calls."""
    quarters = count_quarters(message.text)
    if isinstance(message.content, list):
        images = sum(part.get("type") == "image_url" for part in message.content)
        quarters += images * IMAGE_TOKENS * CHARS_PER_TOKEN
    for call in message.tool_calls:
        quarters += count_quarters(call.name) + count_quarters(call.arguments)
    return quarters


def count_quarters(text: str) -> int:
    """Count quarters of tokens, in constant time for ASCII.

    Of a long text in other scripts, evenly distributed samples are counted.
    """
    if text.isascii():
        return len(text)
    length = len(text)
    if length <= _MAX_COUNTED_CHARS:
        return _count_by_width(text)
    distance = length / _SAMPLES
    starts = [int(number * distance) for number in range(_SAMPLES)]
    sample = "".join([text[start : start + _SAMPLE_CHARS] for start in starts])
    return _count_by_width(sample) * length // len(sample)


def _count_by_width(text: str) -> int:
    one = len(text.encode("ascii", "ignore"))
    four = len(text.encode("utf-16-le", "surrogatepass")) // 2 - len(text)
    three = len(text.encode("utf-8", "surrogatepass")) - one - 4 * four - 2 * (len(text) - one - four)
    counts = zip((one, len(text) - one - three - four, three, four), _QUARTERS_BY_WIDTH, strict=True)
    return int(sum(count * quarters for count, quarters in counts))
