"""Finish reasons of model servers, in the gateway's words."""

import re
from functools import lru_cache

_KNOWN = {
    **dict.fromkeys(("stop", "end_turn", "eos", "eos_token", "stop_sequence", "complete", "completed", "done"), "stop"),
    **dict.fromkeys(
        ("tool_calls", "tool_use", "tooluse", "function_call", "function_calls", "tool_call"), "tool_calls"
    ),
    **dict.fromkeys(("refusal", "recitation", "sensitive", "spii"), "content_filter"),
    **dict.fromkeys(("unexpected_tool_call", "too_many_tool_calls"), "malformed_call"),
    **dict.fromkeys(("null", "none", "nil", "undefined", "unspecified", "finish_reason_unspecified"), ""),
    **dict.fromkeys(("in_progress", "running", "pending", "not_finished"), ""),
}
_BROKEN = (
    r"error|abort|cancel|timed?_?out|fail|network|insufficient|overload|unavailable|interrupt|exception|crash|kill"
    r"|preempt|connect|memory|capacity|busy|rate_limit|terminated|exhausted|exceeded|throttl|evict|shutdown|died|broken"
    r"|panic|fault|rejected|dropped|unhealthy|time_limit|deadline|(?:^|_)dead|^oom$"
)
_PATTERNS = (
    (
        (
            r"malformed|(?:invalid|bad|unparsable)_(?:function|tool)|(?:tool|function)\w*_(?:pars|error)"
            r"|missing_thought_signature"
        ),
        "malformed_call",
    ),
    (
        (
            r"filter|safety|prohibited|block_?list|blocked|moderat|censor|guardrail|policy|flagged|unsafe|harmful|toxic"
            r"|^language$"
        ),
        "content_filter",
    ),
    (
        (
            r"length|max(?:imum)?_(?:\w*tokens?|\w*len\b|context|output|completion|new)|tokens?_(?:limit|budget)|of_tokens"
            r"|context_|(?:output|size)_limit|truncat|incomplete|^(?:error_)?limit$"
        ),
        "length",
    ),
    (_BROKEN, "broken"),
)
_SEPARATORS = re.compile(r"[\s.\-]+")
_MAX_LENGTH = 100


@lru_cache(maxsize=64)
def classify_finish_reason(written: str) -> str:
    """Classify the finish reason of a server.

    Return `stop`, `tool_calls`, `length` or `content_filter`; `malformed_call` if the server could not read the model's
    call; `broken` after a failure; "" if it is none. Unknown ones are `stop`.
    """
    reason = _SEPARATORS.sub("_", written[:_MAX_LENGTH].strip().lower())
    if not reason or reason in _KNOWN:
        return _KNOWN.get(reason, "")
    return next((meaning for pattern, meaning in _PATTERNS if re.search(pattern, reason)), "stop")
