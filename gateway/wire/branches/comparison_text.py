"""A comparison of two turns as text, with line diffs."""

from collections.abc import Iterator

import msgspec

from gateway.common.sanitize import escape_for_terminal
from gateway.wire.branches.comparison import ComparedCall, ComparedStep, ComparedTurn, TurnComparison

_MAX_LINES = 300
"""Lines of a step that are compared.

The comparison takes time in proportion to their square.
"""
_MAX_TOTAL_LINES = 2_000
_MAX_LINE_LENGTH = 400
_FIGURES = (
    ("steps", "steps"),
    ("calls", "tool calls"),
    ("prompt_tokens", "prompt tokens"),
    ("completion_tokens", "completion tokens"),
    ("total_tokens", "total tokens"),
    ("cost_usd", "cost, USD"),
    ("duration_ms", "time, ms"),
    ("first_token_ms", "first token, ms"),
    ("tool_ms", "time of tools, ms"),
)


def format_comparison(comparison: TurnComparison) -> str:
    """Format figures as a table, then the steps as a diff.

    Lines with `-` are of the left turn only, lines with `+` of the right one only.
    """
    left, right = comparison.left, comparison.right
    lines = [f"--- {_format_turn(left)}", f"+++ {_format_turn(right)}", "", *_format_figures(comparison)]
    remaining = _MAX_TOTAL_LINES
    for step in comparison.steps:
        same = "the same" if step.same_text and step.same_calls else "different"
        lines += ["", f"@@ step {step.step}: {same} @@"]
        left_lines, right_lines = _list_lines(step.left)[:remaining], _list_lines(step.right)[:remaining]
        remaining -= max(len(left_lines), len(right_lines))
        lines += _diff_lines(left_lines, right_lines)
    if comparison.truncated or remaining <= 0:
        lines += ["", "Long texts are cut in this comparison."]
    return "".join(f"{line}\n" for line in lines)


def _format_turn(turn: ComparedTurn) -> str:
    end = turn.finish_reason or turn.error or ""
    return _clean_line(f"{turn.turn_id}  {turn.model}  {turn.status} {end}".rstrip())


def _format_figures(comparison: TurnComparison) -> list[str]:
    rows = [("", "left", "right", "difference")]
    for name, label in _FIGURES:
        left, right = getattr(comparison.left, name), getattr(comparison.right, name)
        difference = getattr(comparison.difference, name)
        rows.append((label, _format_number(left), _format_number(right), _format_number(difference, sign="+")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [f"{row[0]:<{widths[0]}}  " + "  ".join(f"{row[n]:>{widths[n]}}" for n in (1, 2, 3)) for row in rows]


def _format_number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.6g}" if isinstance(value, float) else f"{value:{sign}d}"


def _list_lines(step: ComparedStep | None) -> list[str]:
    if step is None:
        return []
    lines = [_clean_line(line) for line in step.text.splitlines()]
    for call in step.calls:
        lines += _list_call_lines(call)
    return lines if len(lines) <= _MAX_LINES else [*lines[: _MAX_LINES - 1], "…"]


def _list_call_lines(call: ComparedCall) -> list[str]:
    arguments = call.arguments
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments, order="sorted").decode()
    first, *rest = call.result.splitlines() or [""]
    outcome = f"{call.outcome or 'no result'}, {call.source}" if call.source else call.outcome or "no result"
    lines = [f"call {call.tool} {text}", f"  {outcome}: {first}", *(f"  {line}" for line in rest)]
    return [_clean_line(line) for line in lines]


def _clean_line(line: str) -> str:
    cut = line if len(line) <= _MAX_LINE_LENGTH else line[: _MAX_LINE_LENGTH - 1] + "…"
    return escape_for_terminal(cut)


def _diff_lines(left: list[str], right: list[str]) -> Iterator[str]:
    """Yield the lines of both sides with their marks.

    The common lines are the longest common subsequence. Its time is bounded by the square of the lines, unlike that of
    the standard library's diff.
    """
    lengths = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in range(len(left) - 1, -1, -1):
        for j in range(len(right) - 1, -1, -1):
            is_equal = left[i] == right[j]
            lengths[i][j] = lengths[i + 1][j + 1] + 1 if is_equal else max(lengths[i + 1][j], lengths[i][j + 1])
    i = j = 0
    while i < len(left) or j < len(right):
        if i < len(left) and j < len(right) and left[i] == right[j]:
            yield f"  {left[i]}"
            i, j = i + 1, j + 1
        elif j == len(right) or (i < len(left) and lengths[i + 1][j] >= lengths[i][j + 1]):
            yield f"- {left[i]}"
            i += 1
        else:
            yield f"+ {right[j]}"
            j += 1
