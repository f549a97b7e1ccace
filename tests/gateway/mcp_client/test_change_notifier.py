"""Tests of debounced change notifications."""

import asyncio

from gateway.mcp_client.change_notifier import ChangeNotifier


async def test_changes_within_the_interval_cause_one_notification() -> None:
    notifier = ChangeNotifier()
    notified = asyncio.Event()
    calls: list[str] = []

    async def record_first(_kinds: object, _user: object) -> None:
        calls.append("first")

    async def record_second(_kinds: object, _user: object) -> None:
        calls.append("second")
        notified.set()

    notifier.add_subscriber(record_first)
    notifier.add_subscriber(record_second)
    for _ in range(5):
        notifier.schedule_notification()
    await notified.wait()
    assert calls == ["first", "second"]


async def test_change_during_a_notification_causes_another() -> None:
    notifier = ChangeNotifier()
    notified_twice = asyncio.Event()
    calls: list[int] = []

    async def record_call(_kinds: object, _user: object) -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            notifier.schedule_notification()
        else:
            notified_twice.set()

    notifier.add_subscriber(record_call)
    notifier.schedule_notification()
    await notified_twice.wait()
    assert calls == [0, 1]


async def test_cancelled_notification_reaches_no_subscriber() -> None:
    notifier = ChangeNotifier()
    calls: list[int] = []

    async def record_call(_kinds: object, _user: object) -> None:
        calls.append(1)

    notifier.add_subscriber(record_call)
    notifier.schedule_notification()
    await notifier.cancel_notification()
    assert calls == []


async def test_change_of_one_user_is_told_of_that_user_and_not_twice() -> None:
    notifier = ChangeNotifier()
    notified = asyncio.Event()
    calls: list[tuple[str | None, list[str]]] = []

    async def record_call(kinds: frozenset[str], user: str | None) -> None:
        calls.append((user, sorted(kinds)))
        if len(calls) == 3:
            notified.set()

    notifier.add_subscriber(record_call)
    notifier.schedule_notification(("tools",))
    notifier.schedule_notification(("tools", "prompts"), "ada")
    notifier.schedule_notification(("tools",), "bob")
    notifier.schedule_notification(("resources",), "eve")
    await notified.wait()
    assert calls == [(None, ["tools"]), ("ada", ["prompts"]), ("eve", ["resources"])]
