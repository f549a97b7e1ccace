"""Tests of the report on a start, with the real gateway."""

import asyncio
from urllib.parse import urlsplit

import pytest

from gateway.common.concurrency import SupervisedTask
from gateway.config import load_settings
from gateway.server.startup_report import report_stack_ready
from tests.stack import Gateway


async def print_report(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the report without waiting for the gateway to become ready."""
    settings = load_settings(_env_file=None, gateway_port=urlsplit(gateway.base_url).port, groq_api_key="gsk-x" * 9)
    await report_stack_ready(settings, None, 9, 0.0, degraded_after_seconds=0.0)
    return capsys.readouterr().out


async def test_report_names_a_background_task_that_is_down(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        raise ValueError

    writer = SupervisedTask("writer", fail, vital=True, min_backoff_seconds=3600)
    gateway.state.tasks.add(writer)
    writer.start()
    while not writer.is_down:
        await asyncio.sleep(0)
    report = await print_report(gateway, capsys)
    assert "\nThe agent gateway is up after " in report
    assert "  not ready    background tasks: failed: writer\n" in report
    await writer.stop()


async def test_report_shows_the_error_that_answers_ready(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    del gateway.state.tasks  # an internal error in `/ready`
    message = (await gateway.get("/ready")).body["error"]["message"]
    report = await print_report(gateway, capsys)
    assert f"  not ready    /ready was answered with an error: {message}\n" in report
    assert f"curl -N {gateway.base_url}/api/v1/chat/stream" in report
