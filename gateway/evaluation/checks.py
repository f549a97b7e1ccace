"""Compares a run of a case with what must happen."""

from fnmatch import fnmatchcase

import msgspec
import regex

from gateway.evaluation.agent import CaseCall, CaseRun
from gateway.evaluation.cases import Expectation, ExpectedCall, includes

_PATTERN_SECONDS = 1.0
_MAX_QUOTED_LENGTH = 200


def find_problems(run: CaseRun, expected: Expectation) -> list[str]:
    """List what is wrong with a run; empty if it passes."""
    problems = [run.error] if run.error is not None else []
    problems += _find_call_problems(run.calls, expected)
    answer = run.answer.casefold()
    problems += [f"the answer lacks {text!r}" for text in expected.contains if text.casefold() not in answer]
    problems += [f"the answer has {text!r}" for text in expected.excludes if text.casefold() in answer]
    if expected.pattern is not None and not _matches(expected.pattern, run.answer):
        problems.append(f"the answer does not match {expected.pattern!r}")
    if expected.max_steps is not None and run.steps > expected.max_steps:
        problems.append(f"{run.steps} steps, at most {expected.max_steps} expected")
    return problems


def _find_call_problems(calls: tuple[CaseCall, ...], expected: Expectation) -> list[str]:
    problems: list[str] = []
    position, matched = 0, 0
    for wanted in expected.calls:
        found = next((n for n in range(position, len(calls)) if _is_expected(calls[n], wanted)), None)
        if found is None:
            problems.append(f"no call {_format_expected(wanted)} among {_format_calls(calls[position:])}")
        else:
            position, matched = found + 1, matched + 1
    if expected.exact and not problems and matched < len(calls):
        problems.append(f"{len(calls)} calls instead of {matched}: {_format_calls(calls)}")
    for glob in expected.no_calls:
        problems += [f"called {call.tool}" for call in calls if fnmatchcase(call.tool, glob)]
    return problems


def _is_expected(call: CaseCall, wanted: ExpectedCall) -> bool:
    if call.tool != wanted.tool or not isinstance(call.arguments, dict):
        return call.tool == wanted.tool and not wanted.arguments and not wanted.patterns
    arguments = call.arguments
    return includes(arguments, wanted.arguments) and all(
        _matches(pattern, str(arguments.get(name, ""))) for name, pattern in wanted.patterns.items()
    )


def _matches(pattern: str, text: str) -> bool:
    try:
        return regex.search(pattern, text, regex.IGNORECASE, timeout=_PATTERN_SECONDS) is not None
    except (regex.error, TimeoutError):
        return False


def _format_expected(wanted: ExpectedCall) -> str:
    return f"{wanted.tool} {_encode({**wanted.arguments, **wanted.patterns})}"


def _format_calls(calls: tuple[CaseCall, ...]) -> str:
    return "; ".join(f"{call.tool} {_encode(call.arguments)}" for call in calls)[:_MAX_QUOTED_LENGTH] or "none"


def _encode(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()[:_MAX_QUOTED_LENGTH]
