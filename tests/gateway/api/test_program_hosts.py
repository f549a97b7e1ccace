"""Programs of MCP hosts, whose calls need answers of people."""

from pathlib import Path
from typing import Any

import mcp.types as t
import pytest
from mcp import Client, MCPError

from gateway.mcp_client.policy.access import ToolPermissions
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.gateway.api.test_hostile_definitions import serve_hostile
from tests.gateway.api.test_suspended_calls import Host
from tests.gateway.mcp_client.hostile_server import HostileServer, make_tool
from tests.gateway.test_mcp_endpoint import connect_host, get_text
from tests.stack import Gateway

pytestmark = pytest.mark.faults

ALWAYS = {"prefix": "", "approval": "always"}
both_eras = pytest.mark.parametrize("mode", ["legacy", "auto"])


class Person:
    """User of a host, with one answer to all questions."""

    def __init__(self, action: Any = "accept", content: dict[str, Any] | None = None) -> None:
        self.answer = t.ElicitResult(action=action, content=content or {})
        self.questions: list[str] = []

    async def ask(self, _context: Any, params: Any) -> t.ElicitResult:
        self.questions.append(params.message)
        return self.answer


def connect(gateway: Gateway, mode: str, **options: Any) -> Any:
    return connect_host(gateway, mode, path="/mcp?mode=code", **options)


async def run_program(host: Client, code: str) -> str:
    return get_text(await host.call_tool("run_python", {"code": code}))


@both_eras
async def test_host_of_either_era_approves_the_calls_of_its_program(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    server, person = HostileServer(make_tool("change"), make_tool("other")), Person()
    async with (
        serve_hostile(database_url, simulator, tmp_path, {"odd": (server, ALWAYS)}) as gateway,
        connect(gateway, mode, elicitation_callback=person.ask) as host,
    ):
        assert await run_program(host, "print('begun')\nawait change()\nawait other()") == "begun\ndone"
    assert len(server.calls) == 2
    assert [message.split(" of the server")[0] for message in person.questions] == [
        "May the tool change",
        "May the tool other",
    ]


@both_eras
async def test_gathered_calls_of_a_host_are_asked_for_each(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    reading = t.ToolAnnotations(read_only_hint=True)
    server, person = HostileServer(make_tool("look", annotations=reading)), Person()
    program = "import asyncio\nlen(await asyncio.gather(*[look() for n in range(30)]))"
    async with (
        serve_hostile(database_url, simulator, tmp_path, {"odd": (server, ALWAYS)}) as gateway,
        connect(gateway, mode, elicitation_callback=person.ask) as host,
    ):
        assert await run_program(host, program) == "30"
    assert len(server.calls) == len(person.questions) == 30


@both_eras
async def test_call_that_the_user_of_a_host_declines_raises_in_the_program(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    server, person = HostileServer(make_tool("change")), Person("decline")
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, ALWAYS)}) as gateway:
        async with connect(gateway, mode, elicitation_callback=person.ask) as host:
            program = "try:\n    await change()\nexcept RuntimeError:\n    print('refused')"
            assert await run_program(host, program) == "refused"
        async with connect(gateway, mode) as host:
            assert "this host cannot ask them" in await run_program(host, "await change()")
    assert server.calls == []


@both_eras
async def test_question_of_a_server_in_a_program_reaches_the_host(
    database_url: str, simulator: Simulator, tmp_path: Path, mode: str
) -> None:
    server, person = HostileServer(make_tool("ask")), Person(content={"row": "b"})
    server.question = {"type": "object", "properties": {"row": {"type": "string"}}}
    async with (
        serve_hostile(database_url, simulator, tmp_path, {"odd": (server, {"prefix": ""})}) as gateway,
        connect(gateway, mode, elicitation_callback=person.ask) as host,
    ):
        assert await run_program(host, "await ask()") == "done"
    assert person.questions == ["Well?"]


async def test_program_s_state_is_its_user_s_and_is_taken_once(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = HostileServer(make_tool("change"))
    async with serve_hostile(database_url, simulator, tmp_path, {"odd": (server, ALWAYS)}) as gateway:
        keyring = Keyring(gateway)
        for owner in ("ada", "bob"):
            await keyring.create_key(owner)
        options: dict[str, Any] = {"elicitation_callback": Host().elicit}
        async with (
            connect(gateway, "auto", headers=keyring.headers("ada"), **options) as ada,
            connect(gateway, "auto", headers=keyring.headers("bob"), **options) as bob,
        ):
            question = await call(ada)
            for state in (question.request_state, "held-x", "forged"):
                with pytest.raises(MCPError, match=r"requestState is not valid|no longer waits"):
                    await call(bob, question, state)
            assert server.calls == []
            assert get_text(await call(ada, question, question.request_state)) == "done"
            with pytest.raises(MCPError, match="no longer waits"):
                await call(ada, question, question.request_state)
    assert len(server.calls) == 1


async def call(host: Client, question: Any = None, state: str | None = None) -> Any:
    """Run a program that needs an approval, or answer its question."""
    answers: Any = question and {key: t.ElicitResult(action="accept", content={}) for key in question.input_requests}
    return await host.session.call_tool(
        "run_python",
        {"code": "await change()"},
        input_responses=answers,
        request_state=state,
        allow_input_required=True,
    )


async def test_programs_that_wait_for_hosts_hold_no_sandbox(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    server = HostileServer(make_tool("change"))
    entries = {"odd": (server, ALWAYS)}
    async with (
        serve_hostile(database_url, simulator, tmp_path, entries, code_processes=1) as gateway,
        connect(gateway, "auto", elicitation_callback=Host().elicit) as host,
    ):
        questions = [await call(host) for _ in range(3)]
        for question in questions:
            assert get_text(await call(host, question, question.request_state)) == "done"


@pytest.mark.parametrize(
    ("code", "query", "listed"),
    [("only", "", True), ("off", "?mode=code", True), ("off", "", False), ("only", "?mode=tools", False)],
)
async def test_key_decides_whether_its_hosts_see_programs(
    database_url: str, simulator: Simulator, tmp_path: Path, code: Any, query: str, listed: bool
) -> None:
    entries = {"odd": (HostileServer(make_tool("change")), {"prefix": ""})}
    async with serve_hostile(database_url, simulator, tmp_path, entries, mcp_code_mode=not listed) as gateway:
        headers = await Keyring(gateway).create_key("ada", code=code)
        async with connect_host(gateway, "auto", path=f"/mcp{query}", headers=headers) as host:
            assert ("run_python" in {tool.name for tool in (await host.list_tools()).tools}) == listed


async def test_unexpected_error_in_a_call_of_a_host_s_program_is_an_error_without_its_text(
    database_url: str, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: Any) -> None:
        raise RuntimeError("secret: hunter2")

    entries = {"odd": (HostileServer(make_tool("change")), {"prefix": ""})}
    async with (
        serve_hostile(database_url, simulator, tmp_path, entries) as gateway,
        connect(gateway, "auto") as host,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ToolPermissions, "call_tool", fail)
            with pytest.raises(MCPError) as caught:
                await run_program(host, "await change()")
            assert "hunter2" not in str(caught.value)
        assert await run_program(host, "await change()") == "done"
