"""Extracts the text of pages in processes with a deadline."""

import asyncio
import os
import subprocess
import sys
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from gateway_runtime.child_processes import select_variables
from tools_server.page_text import read_message, write_message
from tools_server.thread_pool import BoundedThreadPool

log = structlog.stdlib.get_logger(__name__)

_MAX_PROCESSES = 2
EXTRACTION_SECONDS = 10.0
_MAX_PAGES = 100
"""Pages after which a process is replaced, because its memory grows."""


class ExtractionFailed(Exception):
    """A page has no text.

    Its extraction took too long, or ended the process.
    """


class TextExtractor:
    """Extracts texts in at most two processes.

    A thread waits for each of them, and ends with it. So a large page occupies neither after its deadline.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "tools_server.page_text")) -> None:
        self._command = command
        self._threads = BoundedThreadPool(_MAX_PROCESSES)
        self._idle: deque[_ExtractionProcess] = deque()
        self.close = weakref.finalize(self, _end_all, self._idle)
        """End the idle processes."""

    async def extract_text(self, html: str, seconds: float = EXTRACTION_SECONDS) -> tuple[str | None, str]:
        """Extract title and main text.

        Raises:
            ExtractionFailed: it takes longer than `seconds`, or fails.
        """
        job = _ExtractionJob(self._command, self._idle)
        try:
            async with asyncio.timeout(seconds):
                return await self._threads.run_blocking(job.run, html)
        except TimeoutError:
            raise ExtractionFailed from None
        finally:
            job.cancel()


class _ExtractionJob:
    """The extraction of one page, which can be cancelled from another thread."""

    def __init__(self, command: tuple[str, ...], idle: "deque[_ExtractionProcess]") -> None:
        self._command = command
        self._idle = idle
        self._lock = threading.Lock()
        self._process: _ExtractionProcess | None = None
        self._is_over = False

    def run(self, html: str) -> tuple[str | None, str]:
        """Extract the text in an idle process, or in a new one."""
        with self._lock:
            if self._is_over:
                raise ExtractionFailed
            try:
                process = self._idle.popleft()
            except IndexError:
                process = _ExtractionProcess(self._command)
            self._process = process
        try:
            result = process.extract_text(html)
        except (OSError, EOFError, ValueError) as error:
            process.end()
            log.warning("page_not_extracted", error=type(error).__name__, exit_code=process.exit_code)
            raise ExtractionFailed from None
        with self._lock:
            self._process = None
            if self._is_over or process.pages >= _MAX_PAGES:
                process.end()
            else:
                self._idle.append(process)
        return result

    def cancel(self) -> None:
        """End the process if it still works, and with it the thread."""
        with self._lock:
            self._is_over = True
            if self._process is not None:
                self._process.kill()


class _ExtractionProcess:
    """A process that extracts texts; see `tools_server.page_text`."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.pages = 0
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a page could write lines that look like ours
            cwd=Path(__file__).parent.parent,
            env=select_variables(os.environ),
        )

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def extract_text(self, html: str) -> tuple[str | None, str]:
        """Send a page and wait for its text.

        Raises:
            OSError, EOFError, ValueError: the process has ended, or its answer is malformed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pages += 1
        write_message(cast(BinaryIO, self._process.stdin), html)
        title, text = cast("tuple[str | None, str]", read_message(cast(BinaryIO, self._process.stdout)))
        return title, text

    def kill(self) -> None:
        """End the process. The thread that waits for it reaps it."""
        self._process.kill()

    def end(self) -> None:
        """End the process and reap it."""
        self._process.kill()
        self._process.communicate()


def _end_all(processes: "deque[_ExtractionProcess]") -> None:
    while processes:
        processes.pop().end()
