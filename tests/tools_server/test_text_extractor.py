"""Extraction of pages in other processes."""

import asyncio
import os
import sys
import threading
import time

import pytest
from aiohttp import web

from tests.eventually import eventually
from tests.tools_server.conftest import serve_web
from tools_server.fetch_page import FetchError, PageFetcher
from tools_server.text_extractor import ExtractionFailed, TextExtractor

ENDLESS = """
import os, sys, time
from tools_server.page_text import read_message, write_message
while True:
    page = read_message(sys.stdin.buffer)
    if page == "crash":
        os._exit(3)
    while page == "endless":
        pass
    write_message(sys.stdout.buffer, [str(os.getpid()), page])
"""


def make_extractor() -> TextExtractor:
    return TextExtractor((sys.executable, "-c", ENDLESS))


def list_threads() -> set[threading.Thread]:
    """Return the threads of all extractors.

    Those of earlier tests may end meanwhile.
    """
    return {thread for thread in threading.enumerate() if thread.name == "tools-server"}


async def test_large_pages_occupy_no_thread_and_no_process_after_their_deadline() -> None:
    extractor = make_extractor()
    before = list_threads()
    pages = [extractor.extract_text("endless", seconds=1.5) for _ in range(4)]
    results = await asyncio.gather(*pages, return_exceptions=True)
    assert [type(result) for result in results] == [ExtractionFailed] * 4
    await eventually(lambda: not list_threads() - before)
    async with asyncio.timeout(30):
        assert (await extractor.extract_text("text", seconds=30))[1] == "text"
    extractor.close()


async def test_cancelled_extraction_ends_its_process() -> None:
    extractor = make_extractor()
    before = list_threads()
    extraction = asyncio.create_task(extractor.extract_text("endless", seconds=30))
    await eventually(lambda: list_threads() - before)
    extraction.cancel()
    await asyncio.gather(extraction, return_exceptions=True)
    await eventually(lambda: not list_threads() - before)
    extractor.close()


async def test_page_that_ends_the_process_does_not_affect_the_next_one() -> None:
    extractor = make_extractor()
    first, _ = await extractor.extract_text("text", seconds=30)
    assert (await extractor.extract_text("text", seconds=30))[0] == first
    with pytest.raises(ExtractionFailed):
        await extractor.extract_text("crash", seconds=30)
    second, text = await extractor.extract_text("text", seconds=30)
    assert (second != first, text) == (True, "text")
    extractor.close()


async def test_idle_processes_end_with_the_extractor() -> None:
    extractor = make_extractor()
    pid, _ = await extractor.extract_text("text", seconds=30)
    assert pid is not None
    os.kill(int(pid), 0)
    del extractor

    def has_ended() -> bool:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        return False

    await eventually(has_ended)


async def test_extraction_process_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAVILY_API_KEY", "geheim")
    code = ENDLESS.replace("str(os.getpid())", "os.environ.get('TAVILY_API_KEY')")
    extractor = TextExtractor((sys.executable, "-c", code))
    assert await extractor.extract_text("text", seconds=30) == (None, "text")
    extractor.close()


@pytest.mark.faults
async def test_pages_that_take_long_do_not_keep_others_from_being_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.path[1:], content_type="text/html")

    fetcher = PageFetcher(lambda _address, _port: True, total_seconds=60)
    monkeypatch.setattr(fetcher, "_extractor", make_extractor())
    async with serve_web(answer) as address:
        await fetcher.fetch_url(f"{address}/warm-up")
        monkeypatch.setattr(fetcher, "_total_seconds", 5)
        started = time.monotonic()
        slow = [asyncio.create_task(fetcher.fetch_url(f"{address}/endless")) for _ in range(3)]
        results = await asyncio.gather(*slow, return_exceptions=True)
        assert all(isinstance(result, FetchError) for result in results)
        assert time.monotonic() - started < 30
        monkeypatch.setattr(fetcher, "_total_seconds", 60)  # of a new process, on a slow machine
        assert (await fetcher.fetch_url(f"{address}/next")).text == "next"
