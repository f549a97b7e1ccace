"""Words of model servers in their errors.

Servers tell the same failure in many words, and few of them send a code for it.
"""

import re

_MAX_MATCHED_CHARS = 2_000
_RATE_LIMIT = re.compile(r"rate[ _-]limit(?:ed|s)?\b|too many requests|throttl", re.IGNORECASE)
_LONG_PROMPT = re.compile(
    r"context[ _]?(?:length|window|size|limit)|maximum (?:context|prompt|input)|n_ctx"
    r"|(?:prompt|input|messages?|conversation)\b[^.\n]{0,40} (?:too long|too large for|longer than)"
    r"|too many (?:input |prompt )?tokens"
    r"|exceed(?:s|ed|ing)? (?:the )?(?:model(?:'s)? )?(?:token limit|(?:available )?context)"
    r"|(?:cannot exceed|less than) \d++ tokens|tokens? in the prompt|more than max tokens|`? tokens \+ `?max_new_tokens"
    r"|sequence length is longer than|max_(?:model_len|seq_len|input_tokens|prompt_tokens)|max seq len"
    r"|context (?:is )?(?:full|overflow|too small)|more than the (?:model's )?(?:context|window)"
    r"|(?:not|n't) fit (?:in|into|within) (?:the |its )?(?:model's )?(?:context|window)"
    r"|\u4e0a\u4e0b\u6587\u957f\u5ea6|\u8f93\u5165\u957f\u5ea6|\u8f93\u5165.{0,10}\u8d85[\u8fc7\u51fa]|\u8d85[\u8fc7\u51fa].{0,10}\u4e0a\u4e0b\u6587"
    r"|range of input length|when context (?:the )?overflows"
    r"|reduce the length of (?:the |your )?(?:messages|prompt|input)",
    re.IGNORECASE,
)
_LONG_INPUT = re.compile(
    r"exceed(?:s|ed|ing)? (?:the )?(?:model(?:'s)? )?max\w*(?: \w{1,20}){0,3} (?:length|tokens?|context)"
    r"|(?:tokens?|input|prompt|length)\b[^.\n]{0,60} exceed(?:s|ed|ing)? (?:the )?(?:\w{1,20} )?(?:model|limit|max)"
    r"|tokens?\b[^.\n]{0,30} (?:larger|greater|more|higher) than (?:the )?(?:model|limit|max)"
    r"|\d (?:\w{1,20} )?tokens\b[^.\n]{0,40}\b(?:maximum|limit|at most)\b",
    re.IGNORECASE,
)
"""Words about a limit.

It may be another one than that of the prompt.
"""
_INPUT = re.compile(
    r"\b(?:tokens?|inputs?|prompts?|messages?|context|conversation|sequence|request|text)\b", re.IGNORECASE
)
_OTHER_LIMIT = re.compile(
    r"\bmax_(?:completion_|output_|new_)?tokens|\b(?:output|completion|new) (?:tokens?|length)|\bthinking|\bbudget"
    r"|\bper (?:minute|hour|day)|\b(?:image|audio|video|file|document|name|description|schema)s?\b",
    re.IGNORECASE,
)
"""Words about the answer, a rate or a field.

Their limit may be told instead.
"""
_PROMPT = re.compile(r"\b(?:inputs?|prompts?|messages?|context|conversation|history|text)\b", re.IGNORECASE)
_BYTES = re.compile(r"\d ?[KMG]i?B\b|\bbytes\b|\bsize\b")
_WRONG_LIMIT = re.compile(r"max_(?:completion_|output_)?tokens`?'? must be (?:less|at most|<)", re.IGNORECASE)
"""Messages about the limit of the answer.

They may speak of the window, too.
"""
_CALL_WORDS = r"\b(?:tool|function)s?[ _-]?(?:call|use|arg|invocation)"
_UNREADABLE_CALL = re.compile(
    rf"(?:fail(?:ed|ure)? to|error|cannot|could not|unable to|while) "
    rf"(?:pars|decod|extract)(?:e|ing)?\b[^.\n]{{0,30}}{_CALL_WORDS}"
    r"|(?:tool|function)[ _-]?calls?\b[^.\n]{0,30}\bpars(?:e|ing) (?:failed|error)"
    r"|(?:generated|produced|output) (?:an? )?(?:invalid|malformed|unparsable) (?:tool|function)[ _-]?call"
    r"|(?:model|generated)[^.\n]{0,30} output\b[^.\n]{0,20} could not be parsed"
    r"|failed to parse (?:the )?model (?:output|response)"
    r"|(?:invalid|unexpected) \w[^.\n]{0,40} in (?:the )?(?:tool|function)[ _-]?call arguments"
    rf"|(?:error in|{_CALL_WORDS}[^.\n]{{0,10}}) (?:extracting|parser error)[^.\n]{{0,30}}|failed to call a function\b"
    r"|attempted to call tool\b|did not call a tool\b|now finding less tool calls|tool call validation failed"
    r"|harmonyerror|tokens remaining (?:in message header|after extracting content-type)",
    re.IGNORECASE,
)
"""Messages about what a model wrote, in the words of several servers."""
_REQUEST_PART = re.compile(
    r"\b(?:messages?|tools?)(?:\[\d|\.\d)|\b(?:request|json) body\b|\bdefinitions?\b"
    r"|\bin (?:the |your )?(?:request\b(?!\.tools)|messages?\b(?! header))",
    re.IGNORECASE,
)
"""Parts of the request, about which a message may be instead."""


def is_rate_limit(message: str) -> bool:
    return bool(_RATE_LIMIT.search(message, 0, _MAX_MATCHED_CHARS))


def is_prompt_too_long(message: str) -> bool:
    """Whether a message says that the prompt exceeds the model's window."""
    message = message[:_MAX_MATCHED_CHARS]
    if _WRONG_LIMIT.search(message):
        return False
    if _LONG_PROMPT.search(message):
        return True
    if not _LONG_INPUT.search(message) or not _INPUT.search(message):
        return False
    return not _OTHER_LIMIT.search(message) or bool(_PROMPT.search(message) and not _BYTES.search(message))


def is_unreadable_call(message: str) -> bool:
    """Whether a message is about a call that the model wrote.

    It may be about a call in the request instead.
    """
    message = message[:_MAX_MATCHED_CHARS]
    return bool(_UNREADABLE_CALL.search(message)) and not _REQUEST_PART.search(message)
