"""One debounced notification for several changes, and none lost while subscribers run."""

import asyncio

from gateway.mcp_client.change_notifier import ChangeNotifier


async def test_changes_within_the_interval_cause_one_notification() -> None:
    notifier = ChangeNotifier()
    notified = asyncio.Event()
    calls: list[str] = []

    async def first() -> None:
        calls.append("first")

    async def second() -> None:
        calls.append("second")
        notified.set()

    notifier.add_subscriber(first)
    notifier.add_subscriber(second)
    for _ in range(5):
        notifier.schedule_notification()
    await notified.wait()
    assert calls == ["first", "second"]


async def test_change_during_a_notification_causes_another() -> None:
    notifier = ChangeNotifier()
    notified_twice = asyncio.Event()
    calls: list[int] = []

    async def subscriber() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            notifier.schedule_notification()
        else:
            notified_twice.set()

    notifier.add_subscriber(subscriber)
    notifier.schedule_notification()
    await notified_twice.wait()
    assert calls == [0, 1]


async def test_cancelled_notification_reaches_no_subscriber() -> None:
    notifier = ChangeNotifier()
    calls: list[int] = []

    async def subscriber() -> None:
        calls.append(1)

    notifier.add_subscriber(subscriber)
    notifier.schedule_notification()
    await notifier.cancel_notification()
    assert calls == []
