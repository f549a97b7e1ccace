"""Tests of the order and concurrency of a step's tool calls."""

import asyncio
from typing import cast

import pytest

from gateway.agent.sampling.sampler import TurnSampler
from gateway.agent.tool_calls import ToolCallScheduler
from gateway.domain.errors import StorageUnavailable
from gateway.domain.events import ToolCallStarted, ToolFinished
from gateway.domain.messages import LOCAL_PRINCIPAL, ToolCall
from tests.call_counter import count_function_calls
from tests.fakes import GatedToolbox, RecordingTurn, spec

READ, WRITE = spec("read", read_only=True), spec("write")


def make_scheduler(toolbox: GatedToolbox, turn: RecordingTurn, limit: int = 8) -> ToolCallScheduler:
    offered = {tool.name: tool for tool in toolbox.list_specs()}
    return ToolCallScheduler(
        1,
        offered=offered,
        toolbox=toolbox,
        principal=LOCAL_PRINCIPAL,
        emitter=turn,
        sampler=cast("TurnSampler", None),  # no server asks
        limit=limit,
    )


def make_call(tool: str, name: str) -> ToolCall:
    return ToolCall(f"call_{name}", tool, f'{{"as": "{name}"}}')


async def test_read_only_call_starts_while_the_model_still_streams() -> None:
    toolbox, turn = GatedToolbox(READ, WRITE), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.add_call(make_call("read", "r1"))
    scheduler.add_call(make_call("write", "w1"))
    await toolbox.wait_until_started("r1")
    toolbox.open_gate("r1")
    toolbox.open_gate("w1")
    await asyncio.sleep(0)
    assert toolbox.started == ["r1"]
    scheduler.run_deferred()
    await scheduler.wait_for_results()
    assert toolbox.started == ["r1", "w1"]


async def test_read_only_calls_run_concurrently_and_writes_in_model_order() -> None:
    toolbox, turn = GatedToolbox(READ, WRITE), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.run_deferred()
    for tool, name in (("read", "r1"), ("read", "r2"), ("write", "w1"), ("read", "r3"), ("write", "w2")):
        scheduler.add_call(make_call(tool, name))
    await toolbox.wait_until_started("r1", "r2")
    assert toolbox.running == {"r1", "r2"}
    toolbox.open_gate("r2")
    toolbox.open_gate("r1")
    await toolbox.wait_until_started("w1")
    assert toolbox.running == {"w1"}
    toolbox.open_gate("w1")
    await toolbox.wait_until_started("r3")
    assert toolbox.running == {"r3"}
    for name in ("r3", "w2"):
        toolbox.open_gate(name)
    await scheduler.wait_for_results()
    assert toolbox.started[-2:] == ["r3", "w2"]


async def test_too_deeply_nested_arguments_become_an_error_result() -> None:
    toolbox, turn = GatedToolbox(READ), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.add_call(ToolCall("call_deep", "read", '{"as": ' + "[" * 100_000 + "]" * 100_000 + "}"))
    scheduler.run_deferred()
    await scheduler.wait_for_results()
    assert [event.outcome for event in turn.events if isinstance(event, ToolFinished)] == ["error"]
    assert not toolbox.started


async def test_concurrent_calls_are_limited() -> None:
    toolbox, turn = GatedToolbox(READ), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn, limit=2)
    for number in range(5):
        scheduler.add_call(make_call("read", f"r{number}"))
    await toolbox.wait_until_started("r0", "r1")
    assert toolbox.running == {"r0", "r1"}
    toolbox.open_gate("r0")
    await toolbox.wait_until_started("r2")
    assert toolbox.running == {"r1", "r2"}
    for number in range(5):
        toolbox.open_gate(f"r{number}")
    await scheduler.wait_for_results()
    assert len(toolbox.started) == 5


async def test_tool_call_event_is_committed_before_the_call_runs() -> None:
    toolbox, turn = GatedToolbox(READ), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.add_call(make_call("read", "r1"))
    started = turn.events[0]
    assert isinstance(started, ToolCallStarted)
    assert started.arguments == {"as": "r1"}
    assert not toolbox.started
    assert turn.log.visible_count == 0
    await toolbox.wait_until_started("r1")
    assert turn.log.visible_count == 1
    await scheduler.cancel_calls()


async def test_unknown_tool_becomes_an_error_that_lists_available_tools() -> None:
    toolbox, turn = GatedToolbox(READ), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.add_call(ToolCall("call_x", "frobnicate", "{}"))
    await scheduler.wait_for_results()
    result = turn.events[-1]
    assert isinstance(result, ToolFinished)
    assert result.outcome == "error"
    assert result.content[0]["text"] == "There is no tool named 'frobnicate'. Available tools: read."


async def test_non_object_arguments_become_an_error_and_the_tool_does_not_run() -> None:
    toolbox, turn = GatedToolbox(READ), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    for number, arguments in enumerate(('{"a": ', "[1]", '"text"')):
        scheduler.add_call(ToolCall(f"call_{number}", "read", arguments))
    await scheduler.wait_for_results()
    outcomes = [event.outcome for event in turn.events if isinstance(event, ToolFinished)]
    assert outcomes == ["error"] * 3
    assert not toolbox.started


async def test_cancel_stops_running_and_deferred_calls() -> None:
    toolbox, turn = GatedToolbox(READ, WRITE), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.add_call(make_call("read", "r1"))
    scheduler.add_call(make_call("write", "w1"))
    await toolbox.wait_until_started("r1")
    await scheduler.cancel_calls()
    assert toolbox.cancelled == ["r1"]
    assert toolbox.started == ["r1"]


class UnstorableTurn(RecordingTurn):
    """A turn whose second call cannot be stored."""

    async def wait_until_durable(self) -> None:
        if any(isinstance(event, ToolCallStarted) and event.call_id == "call_r2" for event in self.events):
            raise StorageUnavailable


async def test_error_of_a_call_ends_the_wait_and_leaves_the_others_to_be_cancelled() -> None:
    toolbox, turn = GatedToolbox(READ), UnstorableTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.add_call(make_call("read", "r1"))
    await toolbox.wait_until_started("r1")
    scheduler.add_call(make_call("read", "r2"))
    with pytest.raises(StorageUnavailable):
        await scheduler.wait_for_results()
    assert toolbox.running == {"r1"}
    await scheduler.cancel_calls()
    assert (toolbox.started, toolbox.cancelled) == (["r1"], ["r1"])


async def test_changing_call_waits_for_all_earlier_calls_and_reads_only_for_changing_ones() -> None:
    toolbox, turn = GatedToolbox(READ, WRITE), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.run_deferred()
    for name in ("r1", "w1", "r2", "r3", "w2", "w3", "r4"):
        scheduler.add_call(make_call("read" if name.startswith("r") else "write", name))
    for group in (["r1"], ["w1"], ["r2", "r3"], ["w2"], ["w3"], ["r4"]):
        await toolbox.wait_until_started(*group)
        for name in group:
            for _ in range(20):  # a call that does not wait would start
                await asyncio.sleep(0)
            assert name in toolbox.running
            assert toolbox.running <= set(group)
            toolbox.open_gate(name)
    await scheduler.wait_for_results()


async def count_work(calls: int) -> int:
    """Count the function calls that alternating tool calls cost."""
    toolbox, turn = GatedToolbox(READ, WRITE), RecordingTurn()
    scheduler = make_scheduler(toolbox, turn)
    scheduler.run_deferred()
    with count_function_calls() as counts:
        for number in range(calls):
            toolbox.open_gate(str(number))
            scheduler.add_call(make_call("write" if number % 2 else "read", str(number)))
        await scheduler.wait_for_results()
    assert len(toolbox.started) == calls
    return counts.total()


async def test_cost_of_tool_calls_grows_linearly() -> None:
    await count_work(1)  # first uses import and cache
    assert await count_work(400) < 4.5 * await count_work(100)
