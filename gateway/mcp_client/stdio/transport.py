"""The SDK's transport to a command.

The SDK's own one keeps lines of any length, ends at a byte that is no UTF-8, and leaves processes behind.
"""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

from gateway.common.concurrency import TaskSet
from gateway.mcp_client.stdio.lines import EndlessLine, LineSplitter, parse_line
from gateway.mcp_client.stdio.output_log import OutputLog
from gateway.mcp_client.stdio.process import ServerProcess, start_process
from gateway.ports.servers import ServerConfig

_CHUNK_BYTES = 64 * 1024
_FLUSH_SECONDS = 0.5
_DRAIN_PAUSE_SECONDS = 0.001
_CLOSED = (anyio.ClosedResourceError, anyio.BrokenResourceError)


class ProcessReport:
    """How the last process of a server ended by itself, for people."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.last_lines: tuple[str, ...] = ()

    def clear(self) -> None:
        """Forget the last process."""
        self.reason, self.last_lines = None, ()


@asynccontextmanager
async def open_stdio(config: ServerConfig, report: ProcessReport, max_bytes: int) -> AsyncGenerator[tuple[Any, Any]]:
    """Run a command, and yield the streams of its messages.

    No process of its group is left at the end.

    Raises:
        OSError: the command cannot be run.
    """
    report.clear()
    process = await start_process(config)
    link = _StdioLink(process, OutputLog(config.name, (config.env or {}).values()), report, max_bytes)
    tasks = TaskSet(f"mcp stdio {config.name}")
    incoming_writer, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, outgoing_reader = anyio.create_memory_object_stream[SessionMessage](0)
    log_task = tasks.spawn(link.log.copy_stream(process.stderr))
    tasks.spawn(link.read_messages(incoming_writer))
    writer_task = tasks.spawn(link.write_messages(outgoing_reader, incoming_writer))
    try:
        yield incoming, outgoing
    finally:
        with anyio.CancelScope(shield=True):
            try:
                incoming.close()
                outgoing.close()
                await asyncio.wait({writer_task}, timeout=_FLUSH_SECONDS)
                await link.report_end(log_task)
            finally:
                await process.stop()
                await tasks.stop()
                incoming_writer.close()
                outgoing_reader.close()


class _StdioLink:
    """Copies messages between a process and the SDK's streams."""

    def __init__(self, process: ServerProcess, output_log: OutputLog, report: ProcessReport, max_bytes: int) -> None:
        self.log = output_log
        self._process = process
        self._report = report
        self._max_bytes = max_bytes
        self._has_ended = self._has_endless_line = False

    async def read_messages(self, incoming: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
        """Read messages until the output ends.

        Then drain what follows, so that no write of the process blocks.
        """
        lines = LineSplitter(self._max_bytes)
        async with incoming:
            try:
                while chunk := await self._process.stdout.read(_CHUNK_BYTES):
                    self._process.has_output = True
                    for line in lines.split(chunk):
                        messages = parse_line(line)
                        for message in messages:
                            await incoming.send(message)
                        if not messages:
                            self.log.add_line(line, "mcp_server_stdout_invalid")
                self._has_ended = True
            except EndlessLine:
                self._has_endless_line = True
            except _CLOSED:
                pass  # the session is closed
        while await self._process.stdout.read(_CHUNK_BYTES):  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_PAUSE_SECONDS)

    async def write_messages(
        self,
        outgoing: MemoryObjectReceiveStream[SessionMessage],
        incoming: MemoryObjectSendStream[SessionMessage | Exception],
    ) -> None:
        """Write messages until the session closes.

        A process that does not accept them ends it.
        """
        async with outgoing:
            async for item in outgoing:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                try:
                    self._process.stdin.write(f"{text}\n".encode())
                    await self._process.stdin.drain()
                except (OSError, RuntimeError):  # RuntimeError: of uvloop, for a transport that is closed
                    await incoming.aclose()
                    return

    async def report_end(self, log_task: asyncio.Task[None]) -> None:
        """Report the last lines, and the end that nobody asked for."""
        if self._has_endless_line:
            self._report.reason = f"it wrote a line without an end, of more than {self._max_bytes:,} bytes"
        elif self._has_ended:
            exit_code = await self._process.wait_for_exit_code()
            await asyncio.wait({log_task}, timeout=_FLUSH_SECONDS)
            self._report.reason = describe_exit(exit_code)
        self._report.last_lines = self.log.last_lines


def describe_exit(exit_code: int | None) -> str:
    """Describe the end of a process for people."""
    if exit_code is None:
        return "its process closed its standard output"
    if exit_code >= 0:
        return f"its process ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"{-exit_code}"
    return f"its process was ended by the signal {name}"
