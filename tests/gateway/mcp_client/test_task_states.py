"""Tasks as servers describe them."""

import time
from typing import Any

import pytest

from gateway.domain.server_tasks import ServerTask
from gateway.mcp_client.tasks.protocol import parse_task_state

TASK: dict[str, Any] = {"taskId": "t", "status": "working"}


@pytest.mark.parametrize(
    "odd",
    [
        {"taskId": "x" * 10_000},
        {"taskId": None},
        {"taskId": 7},
        {"taskId": ""},
        {"status": "sleeping"},
        {"pollInterval": "soon"},
        {"pollIntervalMs": []},
        {"ttl": "forever"},
        {"ttlMs": float("nan")},
        {"inputRequests": [1]},
    ],
    ids=str,
)
def test_odd_task_is_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        parse_task_state({**TASK, **odd})


@pytest.mark.parametrize("name", ["pollInterval", "pollIntervalMs"])
@pytest.mark.parametrize(("interval", "seconds"), [(-1, 0.2), (0, 0.2), (500, 0.5), (1e300, 60), (None, 2)])
def test_interval_of_polls_is_bounded(name: str, interval: float | None, seconds: float) -> None:
    assert parse_task_state({**TASK, name: interval}).get_poll_seconds() == seconds


@pytest.mark.parametrize("name", ["ttl", "ttlMs"])
@pytest.mark.parametrize(("ttl", "seconds"), [(None, 100), (5_000, 5), (1e300, 100), (0, 100), (-5, 100)])
def test_task_ends_with_its_ttl_or_the_limit(name: str, ttl: float | None, seconds: float) -> None:
    task = parse_task_state({**TASK, name: ttl}).to_server_task("a", 100)
    assert task.deadline - task.started_at == pytest.approx(seconds)


def test_task_that_runs_long_is_polled_less() -> None:
    now = time.time()
    assert ServerTask("a", "t", now, now + 1e5, 1.0).choose_poll_pause() == pytest.approx(1.0)
    assert ServerTask("a", "t", now - 1_000, now + 1e5, 1.0).choose_poll_pause() == pytest.approx(10, abs=0.1)
    assert ServerTask("a", "t", now - 90_000, now + 1e5, 1.0).choose_poll_pause() == 60
    assert ServerTask("a", "t", now, now + 0.5, 30.0).choose_poll_pause() == pytest.approx(0.5, abs=0.1)
