"""Tests of the messages for a host at `/mcp` during a call."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from gateway.api.mcp.host import Context, HostObserver
from gateway.ports.tools import MAX_OBSERVED_MESSAGE_LENGTH, MAX_OBSERVED_MESSAGES


class SuspendedSession:
    """A session whose host reads nothing until `resume` is set."""

    def __init__(self) -> None:
        self.resume = asyncio.Event()
        self.messages: list[str] = []
        self.client_capabilities = None

    async def report_progress(self, _progress: float, _total: float | None, message: str) -> None:
        await self.resume.wait()
        self.messages.append(message)

    async def send_log_message(self, _level: str, message: str, _logger: str | None, **_: Any) -> None:
        await self.resume.wait()
        self.messages.append(message)


async def test_messages_for_a_host_that_does_not_read_are_limited() -> None:
    session = SuspendedSession()
    context = SimpleNamespace(session=session, request_id=1, protocol_version="2025-11-25", request=None)
    host = HostObserver(cast(Context, context))
    tasks_before = asyncio.all_tasks()  # of earlier tests, which may end meanwhile
    for number in range(MAX_OBSERVED_MESSAGES):
        host.on_progress(number, None, "p" * 10_000)
        host.on_log("info", "l" * 100_000, None)
        await asyncio.sleep(0)
    tasks = [task for task in asyncio.all_tasks() - tasks_before if task.get_name() == "notify MCP host"]
    assert len(tasks) == MAX_OBSERVED_MESSAGES
    session.resume.set()
    await host.wait_until_notified()
    assert len(session.messages) == MAX_OBSERVED_MESSAGES
    logs = [message for message in session.messages if message.startswith("l")]
    assert {len(message) for message in session.messages} - set(map(len, logs)) == {MAX_OBSERVED_MESSAGE_LENGTH}
    assert max(map(len, logs)) < 70_000
    assert sum(map(len, logs)) <= 4 * 1024 * 1024
    host.on_log("info", "the host reads again", None)
    await host.wait_until_notified()
    assert session.messages[-1] == "the host reads again"
