"""Results of programs, and the answers to their calls."""

from gateway.agent.transcript import format_result
from gateway.common.sanitize import clean_text
from gateway.domain.events import ToolFinished
from gateway.domain.messages import JsonObject, ToolResult, text_block
from gateway.ports.code import CallAnswer, ProgramResult

NO_CODE = "The argument `code` must be a text."
LOST_VARIABLES: JsonObject = {"lost": True}
"""Structured result of a program after which the session has no variables."""
_LOST_NOTE = "The variables of this answer's programs are lost."
_NOT_STRUCTURED = (
    "The call succeeded, but it has no structured value: the server sent none, or one that is too long. Ask for less "
    "if you call it again. Its text begins so: {}"
)
_MAX_TEXT_CHARS = 1_000
_NO_OUTPUT = "(no output: print what you need, or end with an expression)"


def build_program_result(result: ProgramResult, max_chars: int) -> ToolResult:
    """Build the result for the model.

    It has what the program printed, and its value or problem, cut with a note.
    """
    if result.outcome == "rejected":
        return ToolResult("error", [text_block(clean_text(f"The program was not run:\n{result.problem}", max_chars))])
    parts = [result.printed.rstrip("\n"), result.value, result.problem, _LOST_NOTE if result.is_lost else None]
    text = "\n".join(part for part in parts if part)
    cut = len(text) - max_chars
    text = clean_text(text, max_chars) or _NO_OUTPUT
    if cut > 0:
        text += f"\n[{cut:,} characters were cut: print less]"
    structured = LOST_VARIABLES if result.is_lost else None
    return ToolResult("ok" if result.outcome == "ok" else "error", [text_block(text)], structured)


def to_call_answer(result: ToolFinished, *, is_structured: bool) -> CallAnswer:
    """Return the value or error that a call has in its program.

    If the tool promises a structured result, its text is no value: the program was checked with other types.
    """
    text = format_result(result)
    if result.outcome != "ok":
        return CallAnswer(error=text)
    if result.structured is not None:
        return CallAnswer(result.structured)
    return CallAnswer(error=_NOT_STRUCTURED.format(text[:_MAX_TEXT_CHARS])) if is_structured else CallAnswer(text)
