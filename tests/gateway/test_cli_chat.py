"""Tests of `agent-gateway chat` against a real gateway."""

import asyncio
import io
import json
from collections.abc import Callable

import asyncpg
import pytest
from aiohttp import web

from gateway.cli.chat import ChatError, ChatTerminal, _send_prompt, run_chat
from gateway.simulator import Fault
from tests.stack import Gateway, find_free_port
from tests.tools_server.conftest import serve_web


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


async def test_added_task_reads_as_in_the_readme(gateway: Gateway) -> None:
    session = ChatSession(gateway.base_url)
    await session.terminal.send_prompt("Add a task to buy milk")
    assert session.output.getvalue() == "Added task #1: buy milk. (simulated)\n"
    assert "← ok Added task #1: buy milk (" in session.notes.getvalue()


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


OSC_52 = "\x1b]52;c;aGFja2Vk\x07"
HIDDEN = f"{OSC_52}\x9b31m\u202e\u200b\x08\r\x7f"


def has_control_characters(session: ChatSession) -> bool:
    shown = session.output.getvalue() + session.notes.getvalue() + "".join(session.prompts)
    return any(char in shown for char in "\x1b\x07\x08\x7f\x9b\r\u202e\u200b")


async def test_control_characters_of_models_do_not_reach_the_terminal(gateway: Gateway) -> None:
    calls = [{"name": f"no{HIDDEN}tool", "arguments": json.dumps({f"a{HIDDEN}": HIDDEN}, ensure_ascii=False)}]
    gateway.simulator.faults.add_faults(
        Fault(kind="text", text=f"Answer {HIDDEN} and\r\nmore.", match="Answer me"),
        Fault(kind="tool_calls", calls=calls, match="Call it", times=3),
    )
    session = ChatSession(gateway.base_url)
    await session.terminal.send_prompt("Answer me")
    assert r"\x1b]52;c;aGFja2Vk\x07" in session.output.getvalue()
    assert "more." in session.output.getvalue()
    await session.terminal.send_prompt("Call it")
    assert "→ no" in session.notes.getvalue()
    assert not has_control_characters(session)


async def test_control_characters_of_a_hostile_gateway_do_not_reach_the_terminal() -> None:
    question = {
        "type": "input.required",
        "input_id": "1",
        "kind": "question",
        "message": f"Who?{HIDDEN}",
        "schema": {"properties": {"name": {"title": f"Name{HIDDEN}"}}},
    }
    events = [
        {"type": "turn.started", "conversation_id": None, "warnings": [f"Beware{HIDDEN}"]},
        {"type": "model.retry", "reason": f"Again{HIDDEN}"},
        {"type": "tool.result", "outcome": "ok", "content": [{"text": f"Text{HIDDEN}"}], "duration_ms": 1},
        question,
        {"type": "text.delta", "text": f"Text{HIDDEN}"},
        {"type": "turn.failed", "error": {"message": f"Failed{HIDDEN}", "code": "code"}},
    ]

    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("/input"):
            return web.json_response({"error": {"message": f"No{HIDDEN}", "code": f"c{HIDDEN}"}}, status=409)
        frames = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=frames, headers={"X-Turn-Id": "1"})

    async with serve_web(answer) as url:
        session = ChatSession(url, "Ada")
        code = await asyncio.to_thread(_send_prompt, session.terminal, "Hello")
    assert code == 1
    assert session.prompts
    assert not has_control_characters(session)


async def test_control_characters_of_an_error_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": f"No{HIDDEN}", "code": "code"}}, status=500)

    async with serve_web(answer) as url:
        assert await asyncio.to_thread(_send_prompt, ChatSession(url).terminal, "Hello") == 1
    shown = capsys.readouterr().err
    assert r"No\x1b]52" in shown
    assert not any(char in shown for char in "\x1b\x07\x9b\u202e")


async def test_events_of_any_length_are_printed() -> None:
    """The HTTP client itself refuses lines of more than 128 KiB."""
    long_text = "long " * 200_000
    events = [
        {"type": "turn.started", "conversation_id": None, "warnings": []},
        {"type": "tool.result", "outcome": "ok", "content": [{"type": "text", "text": long_text}], "duration_ms": 1},
        {"type": "text.delta", "text": long_text},
    ]

    async def answer(_request: web.Request) -> web.Response:
        frames = "".join(f"id: {number}\ndata: {json.dumps(event)}\n\n" for number, event in enumerate(events, 1))
        return web.Response(text=f"{frames}data: [DONE]\n\n", headers={"X-Turn-Id": "1"})

    async with serve_web(answer) as url:
        session = ChatSession(url)
        await session.terminal.send_prompt("Hello")
    assert session.output.getvalue().strip() == long_text.strip()
    assert "← ok long" in session.notes.getvalue()


async def test_commands_of_the_chat_are_not_sent_to_the_model(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "/help\n/nonsense\nMy dog is called Bello.\n/new\nHello again\n/exit\nNever sent\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert await asyncio.to_thread(run_chat, None, gateway.base_url, api_key=None, model=None) == 0
    shown = capsys.readouterr().err
    assert "/exit" in shown
    assert "There is no command /nonsense" in shown
    prompts = [str(request["messages"]) for request in gateway.simulator.requests]
    assert len(prompts) == 2
    assert "Hello again" in prompts[1]
    assert "Bello" not in prompts[1]
