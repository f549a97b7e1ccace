"""Changes between two texts or JSON values, line by line."""

import json
from difflib import unified_diff

from nicegui import ui

_MAX_LINES = 2_000
_MAX_COMPARED_CHARACTERS = 100_000
_CLASSES = {"+": "added", "-": "removed"}


def format_for_diff(value: object) -> str:
    """Return a value as text with a line for each field."""
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)


def list_changed_lines(was: str, now: str) -> list[str]:
    """Return the lines of a diff.

    They begin with `+`, `-` or a space; `…` stands for equal lines that are left out.
    Texts that are too long to compare are one block each.
    """
    before, after = was.splitlines(), now.splitlines()
    if len(was) + len(now) > _MAX_COMPARED_CHARACTERS or len(before) + len(after) > _MAX_LINES:
        return [*(f"-{line}" for line in before[:_MAX_LINES]), *(f"+{line}" for line in after[:_MAX_LINES])]
    changes = list(unified_diff(before, after, lineterm=""))[2:]
    return ["…" if line.startswith("@@") else line for line in changes]


def draw_diff(was: object, now: object) -> None:
    """Draw what was removed and added."""
    with ui.element("div").classes("diff").props('role="group" aria-label="Changes" tabindex=0'):
        for line in list_changed_lines(format_for_diff(was), format_for_diff(now)):
            ui.label(line).classes(f"plain {_CLASSES.get(line[:1], '')}")
