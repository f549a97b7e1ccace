"""`agent-gateway chat`, against a real gateway."""

import io
from collections.abc import Callable

import asyncpg
import pytest

from gateway.cli.chat import ChatError, ChatTerminal
from gateway.simulator import Fault
from tests.stack import Gateway, free_port


class Session:
    """A terminal with a person who answers in order."""

    def __init__(self, url: str, *lines: str, api_key: str | None = None) -> None:
        self.out, self.side = io.StringIO(), io.StringIO()
        self.asked: list[str] = []
        answers = iter(lines)

        def read(prompt: str) -> str:
            self.asked.append(prompt)
            return next(answers)

        person: Callable[[str], str] | None = read if lines else None
        out, notes = self.out, self.side
        self.terminal = ChatTerminal(url, api_key=api_key, model=None, output=out, notes=notes, read_line=person)


async def test_answer_is_written_to_output_and_tool_calls_to_notes(gateway: Gateway) -> None:
    session = Session(gateway.base_url)
    await session.terminal.send_prompt("What is 23*19?")
    assert "437" in session.out.getvalue()
    assert session.out.getvalue().endswith("\n")
    assert "→ calculator" in session.side.getvalue()
    assert "← ok 23*19 = 437" in session.side.getvalue()


async def test_prompts_continue_one_conversation(gateway: Gateway) -> None:
    session = Session(gateway.base_url)
    await session.terminal.send_prompt("My dog is called Bello.")
    await session.terminal.send_prompt("Hello again")
    assert "Bello" in str(gateway.simulator.requests[-1]["messages"])


async def test_question_is_repeated_until_the_answer_is_valid(gateway: Gateway, db: asyncpg.Connection) -> None:
    session = Session(gateway.base_url, "second", "2")
    for _ in range(2):
        await session.terminal.send_prompt("Add a task to buy milk")
    await session.terminal.send_prompt("delete the task buy milk")
    assert len(session.asked) == 2
    assert "content.task_id" in session.side.getvalue()
    assert [row["id"] for row in await db.fetch("SELECT id FROM tools.tasks")] == [1]


@pytest.mark.parametrize("lines", [("",), ()])
async def test_question_is_declined_by_empty_line_or_without_terminal(
    gateway: Gateway, db: asyncpg.Connection, lines: tuple[str, ...]
) -> None:
    session = Session(gateway.base_url, *lines)
    for _ in range(2):
        await session.terminal.send_prompt("Add a task to buy milk")
    await session.terminal.send_prompt("delete the task buy milk")
    assert "← error" in session.side.getvalue()
    assert await db.fetchval("SELECT count(*) FROM tools.tasks") == 2


async def test_failed_turn_is_reported_with_its_error_code(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="status", status=401, match="Hello"))
    with pytest.raises(ChatError, match=r"\[model_key_refused\]"):
        await Session(gateway.base_url).terminal.send_prompt("Hello")


async def test_unreachable_gateway_is_a_clear_error() -> None:
    with pytest.raises(ChatError, match="No gateway answers at"):
        await Session(f"http://127.0.0.1:{free_port()}").terminal.send_prompt("Hello")
