"""Questions of legacy servers over stdio, which do not name their call."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.messages import Answer, Principal, Question, ToolResult
from gateway.mcp_client.connection.question_routing import QuestionRouter, TurnsToAsk
from gateway.mcp_client.toolbox import McpToolbox
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import CallObserver, ToolCallRequest
from tests.eventually import eventually
from tests.gateway.mcp_client.test_toolbox import connect_toolbox, get_text

pytestmark = pytest.mark.faults  # they start processes

SERVER = Path(__file__).with_name("asking_server.py")


class Person(CallObserver):
    """The user of one call, who answers when the test says so."""

    def __init__(self, name: str, *, answers_at_once: bool = True) -> None:
        self.name = name
        self.questions: list[str] = []
        self.may_answer = asyncio.Event()
        if answers_at_once:
            self.may_answer.set()

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None: ...
    def on_log(self, level: str, data: Any, logger: str | None) -> None: ...

    async def ask_user(self, question: Question) -> Answer:
        self.questions.append(question.message)
        await self.may_answer.wait()
        return Answer("accept", {"text": f"answer of {self.name}"})


@pytest.fixture
async def toolbox() -> AsyncGenerator[McpToolbox]:
    config = ServerConfig(name="s", prefix="", command=sys.executable, args=(str(SERVER),), timeout=20)
    async with connect_toolbox(config) as toolbox:
        yield toolbox


async def call(toolbox: McpToolbox, tool: str, person: Person | None, **arguments: Any) -> str:
    spec = toolbox.find_tool(tool)
    assert spec is not None
    arguments = {"name": person.name if person else "nobody", **arguments}
    result = await toolbox.call_tool(ToolCallRequest(spec, arguments, Principal("ada"), person))
    assert isinstance(result, ToolResult)
    return get_text(result)


async def test_concurrent_calls_get_their_own_questions_and_answers(toolbox: McpToolbox) -> None:
    people = [Person(f"p{number}") for number in range(6)]
    results = await asyncio.gather(*(call(toolbox, "ask", person) for person in people))
    assert results == [f"answer of {person.name}" for person in people]
    assert [person.questions for person in people] == [[f"question of {person.name}"] for person in people]


async def test_question_that_waits_for_its_answer_holds_back_no_other_call(toolbox: McpToolbox) -> None:
    slow, quick = Person("slow", answers_at_once=False), Person("quick")
    first = asyncio.create_task(call(toolbox, "ask", slow))
    await eventually(lambda: slow.questions)
    assert await call(toolbox, "ask", quick) == "answer of quick"
    slow.may_answer.set()
    assert await first == "answer of slow"
    assert (slow.questions, quick.questions) == (["question of slow"], ["question of quick"])


async def test_late_question_of_a_cancelled_call_reaches_nobody_else(toolbox: McpToolbox, tmp_path: Path) -> None:
    gone, next_person = Person("gone"), Person("next")
    file = tmp_path / "may_ask"
    given_up = asyncio.create_task(call(toolbox, "ask_after_file", gone, file=str(file)))
    await eventually((tmp_path / "has_started").exists)
    given_up.cancel()
    await asyncio.wait((given_up,))
    file.touch()
    assert await call(toolbox, "ask", next_person) == "answer of next"
    assert (gone.questions, next_person.questions) == ([], ["question of next"])


async def test_question_of_a_direct_call_is_declined_and_reaches_nobody_else(toolbox: McpToolbox) -> None:
    person = Person("person")
    results = await asyncio.gather(call(toolbox, "ask_late", None, seconds=0.2), call(toolbox, "ask", person))
    assert results == ["decline", "answer of person"]
    assert person.questions == ["question of person"]


async def test_tools_that_do_not_ask_run_side_by_side_and_a_question_among_them_waits(toolbox: McpToolbox) -> None:
    people = [Person(f"p{number}") for number in range(5)]
    assert await call(toolbox, "meet", people[0], calls=1, questions=0) == "done"
    assert await call(toolbox, "maybe", people[0], quiet=True) == "done"
    calls = [call(toolbox, "meet", person, calls=5, questions=1) for person in people[:4]]
    *met, asked = await asyncio.gather(*calls, call(toolbox, "maybe", people[4]))
    assert (met, asked) == (["done"] * 4, "answer of p4")
    assert [person.questions for person in people] == [[]] * 4 + [["question of p4"]]


async def test_call_that_hangs_is_overtaken_and_its_tool_delays_no_call_again(toolbox: McpToolbox) -> None:
    people = [Person(f"p{number}") for number in range(3)]
    hanging = asyncio.create_task(call(toolbox, "sleep", people[0], seconds=17))
    await asyncio.sleep(0.2)
    started = time.monotonic()
    assert await call(toolbox, "maybe", people[1], quiet=True) == "done"
    assert time.monotonic() - started < 14
    overtaken = time.monotonic()
    assert await call(toolbox, "sleep", people[1], seconds=0) == "done"
    assert time.monotonic() - overtaken < 5
    assert not hanging.done()
    # A question beside the hanging call waits until it is clear whose it is.
    assert await call(toolbox, "ask", people[2]) == "answer of p2"
    assert hanging.done()
    assert [person.questions for person in people] == [[], [], ["question of p2"]]


async def test_call_after_an_overtaken_one_waits_for_no_turn() -> None:
    router: QuestionRouter[str] = QuestionRouter()
    turns = TurnsToAsk(router, max_seconds=0.2)
    await turns.take("first", "slow")
    assert turns.may_ask("slow")
    await asyncio.gather(*(turns.take(f"later {number}", "other") for number in range(20)))
    assert not turns.may_ask("slow")
    assert turns.may_ask("other")
    turns.give_back("first")
    await turns.take("last", "other")  # the turn is free again
    turns.on_call_ended("slow", has_asked=True)
    assert turns.may_ask("slow")
