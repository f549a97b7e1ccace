"""The process group of a command, from start to end."""

import asyncio
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mcp.client.stdio import get_default_environment

from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger
from gateway.mcp_client.stdio import install_guard
from gateway.ports.servers import ServerConfig
from gateway_runtime.child_processes import select_variables

log = get_logger(__name__)

INSTALL_SECONDS = 600.0
"""Time for a package runner to install and start a server."""
_CLOSE_SECONDS, _TERMINATE_SECONDS = 1.5, 1.5
_EXIT_CODE_SECONDS = 1.0
_POLL_SECONDS = 0.02
_STREAM_BYTES = 64 * 1024
_RUNNERS = frozenset({"npx", "bunx", "pnpx", "uvx", "pipx"})
_RUNNER_WORDS = re.compile(
    r"(?:^|[\s;&|/])(?:npx|bunx|pnpx|uvx|pipx run|npm (?:exec|x)|(?:pnpm|yarn) dlx|bun x|uv (?:tool )?run)\s"
)


class ServerProcess:
    """A command with its pipes.

    Its process group has the id of its process.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], stdout: IO[bytes], stderr: IO[bytes], *, is_runner: bool
    ) -> None:
        self.stdout = asyncio.StreamReader(limit=_STREAM_BYTES)
        self.stderr = asyncio.StreamReader(limit=_STREAM_BYTES)
        self.has_output = False
        """Whether the process has written to its standard output."""
        self._process = process
        self._files = {stdout: self.stdout, stderr: self.stderr}
        self._transports: list[asyncio.ReadTransport] = []
        self._is_runner = is_runner
        self._deadline = Deadline.after(INSTALL_SECONDS)

    async def open_pipes(self) -> None:
        """Begin to read the output, and to write the input."""
        loop = asyncio.get_running_loop()
        make_protocol = asyncio.streams.FlowControlMixin
        input_transport, input_protocol = await loop.connect_write_pipe(make_protocol, self._process.stdin)
        self.stdin = asyncio.StreamWriter(input_transport, input_protocol, None, loop)
        for file, reader in self._files.items():
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_read_pipe(lambda protocol=protocol: protocol, file)
            self._transports.append(transport)

    @property
    def is_installing(self) -> bool:
        """Whether a package runner may be installing the server.

        A server that runs has written an answer.
        """
        return self._is_runner and not self.has_output and not self._deadline.is_over

    async def wait_for_exit_code(self) -> int | None:
        """The exit code after the output's end; None without one."""
        await self._wait_for_exit(_EXIT_CODE_SECONDS)
        return self._process.poll()

    async def stop(self) -> None:
        """End the whole group: close its input, then SIGTERM, then SIGKILL.

        A package runner that installs is left alone, because its end would leave a broken package. It ends when its
        server finds the input closed.
        """
        try:
            self.stdin.close()
            await self._wait_for_exit(_CLOSE_SECONDS)
            if not self.is_installing and self._signal_group(signal.SIGTERM):
                await self._wait_for_group(_TERMINATE_SECONDS)
        finally:  # also when the stop is cancelled
            if not self.is_installing or self._process.poll() is not None:
                self._signal_group(signal.SIGKILL)
            else:
                self._leave_to_guard()
            for transport in self._transports:
                transport.close()
        await self._wait_for_exit(_EXIT_CODE_SECONDS)

    def _signal_group(self, number: signal.Signals) -> bool:
        """Signal all members; whether there are any."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            log.warning("mcp_server_not_signalled", pid=self._process.pid, signal=number.name)
        return True

    async def _wait_for_exit(self, seconds: float) -> None:
        """Poll for the exit code.

        `wait()` also waits for the ends of pipes, which children may hold open.
        """
        deadline = Deadline.after(seconds)
        while self._process.poll() is None and not deadline.is_over:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    async def _wait_for_group(self, seconds: float) -> None:
        deadline = Deadline.after(seconds)
        while install_guard.is_alive(self._process.pid) and not deadline.is_over:  # noqa: ASYNC110 - has no event
            await asyncio.sleep(_POLL_SECONDS)

    def _leave_to_guard(self) -> None:
        pipes = [file.fileno() for file in self._files]
        arguments = [self._process.pid, self._deadline.remaining(), *pipes]
        program = [sys.executable, "-E", "-S", str(Path(install_guard.__file__)), *map(str, arguments)]
        subprocess.Popen(  # noqa: S603 - the gateway's own program
            program,
            pass_fds=pipes,
            env=select_variables(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        log.warning("mcp_server_left_installing", pid=self._process.pid)


async def start_process(config: ServerConfig) -> ServerProcess:
    """Start a command in a process group of its own.

    Raises:
        OSError: the command or its working directory cannot be used.
        ValueError: an argument contains a null character.
    """
    if config.cwd is not None and not os.path.isdir(config.cwd):  # noqa: ASYNC240 - before a fork
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), config.cwd)
    with contextlib.ExitStack() as stack:
        pipes = [os.pipe(), os.pipe()]
        stdout, stderr = (stack.enter_context(os.fdopen(read_end, "rb", buffering=0)) for read_end, _ in pipes)
        with contextlib.ExitStack() as write_ends:
            for _, write_end in pipes:
                write_ends.callback(os.close, write_end)
            # uvloop's own function leaves further copies of the pipes open in the command, so that nobody would notice
            # that it has closed its output.
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns once the command runs, as that function does
                [config.command, *config.args],
                stdin=subprocess.PIPE,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                env=get_default_environment() | (config.env or {}),
                cwd=config.cwd,
                start_new_session=True,
            )
        server_process = ServerProcess(
            process, stdout, stderr, is_runner=is_package_runner(config.command, config.args)
        )
        stack.pop_all()
    await server_process.open_pipes()
    return server_process


def is_package_runner(command: str, arguments: Sequence[str]) -> bool:
    """Whether a command may install its server before it runs it."""
    name = os.path.basename(command).lower().removesuffix(".cmd").removesuffix(".exe")
    return name in _RUNNERS or _RUNNER_WORDS.search(" ".join((name, *arguments))) is not None
