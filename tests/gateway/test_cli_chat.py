"""Tests of `agent-gateway chat` against a real gateway."""

import io
from collections.abc import Callable

import asyncpg
import pytest

from gateway.cli.chat import ChatError, ChatTerminal
from gateway.simulator import Fault
from tests.stack import Gateway, find_free_port


class ChatSession:
    """A chat terminal whose user types the given lines in order."""

    def __init__(self, url: str, *lines: str, api_key: str | None = None) -> None:
        self.output, self.notes = io.StringIO(), io.StringIO()
        self.prompts: list[str] = []
        typed_lines = iter(lines)

        def read_line(prompt: str) -> str:
            self.prompts.append(prompt)
            return next(typed_lines)

        reader: Callable[[str], str] | None = read_line if lines else None
        self.terminal = ChatTerminal(
            url, api_key=api_key, model=None, output=self.output, notes=self.notes, read_line=reader
        )


async def test_answer_is_written_to_output_and_tool_calls_to_notes(gateway: Gateway) -> None:
    session = ChatSession(gateway.base_url)
    await session.terminal.send_prompt("What is 23*19?")
    assert "437" in session.output.getvalue()
    assert session.output.getvalue().endswith("\n")
    assert "→ calculator" in session.notes.getvalue()
    assert "← ok 23*19 = 437" in session.notes.getvalue()


async def test_prompts_continue_one_conversation(gateway: Gateway) -> None:
    session = ChatSession(gateway.base_url)
    await session.terminal.send_prompt("My dog is called Bello.")
    await session.terminal.send_prompt("Hello again")
    assert "Bello" in str(gateway.simulator.requests[-1]["messages"])


async def test_question_is_repeated_until_the_answer_is_valid(gateway: Gateway, db: asyncpg.Connection) -> None:
    session = ChatSession(gateway.base_url, "second", "2")
    for _ in range(2):
        await session.terminal.send_prompt("Add a task to buy milk")
    await session.terminal.send_prompt("delete the task buy milk")
    assert len(session.prompts) == 2
    assert "content.task_id" in session.notes.getvalue()
    assert [row["id"] for row in await db.fetch("SELECT id FROM tools.tasks")] == [1]


@pytest.mark.parametrize("lines", [("",), ()])
async def test_question_is_declined_by_empty_line_or_without_terminal(
    gateway: Gateway, db: asyncpg.Connection, lines: tuple[str, ...]
) -> None:
    session = ChatSession(gateway.base_url, *lines)
    for _ in range(2):
        await session.terminal.send_prompt("Add a task to buy milk")
    await session.terminal.send_prompt("delete the task buy milk")
    assert "← error" in session.notes.getvalue()
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 2


async def test_failed_turn_is_reported_with_its_error_code(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="status", status=401, match="Hello"))
    with pytest.raises(ChatError, match=r"\[model_key_refused\]"):
        await ChatSession(gateway.base_url).terminal.send_prompt("Hello")


async def test_unreachable_gateway_is_a_clear_error() -> None:
    with pytest.raises(ChatError, match="No gateway answers at"):
        await ChatSession(f"http://127.0.0.1:{find_free_port()}").terminal.send_prompt("Hello")
