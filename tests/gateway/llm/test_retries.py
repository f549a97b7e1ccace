"""Retries, repairs, fallbacks and errors over real HTTP.

There is a test for each fault of a model server.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from gateway.domain.errors import (
    GatewayError,
    ModelAnswerTooLong,
    ModelRateLimited,
    ModelStreamBroken,
    ModelUnavailable,
    PromptTooLong,
    TurnTakenOver,
)
from gateway.domain.messages import Message, Parameters, ToolCall, ToolSpec, Usage
from gateway.llm.catalog import Catalog
from gateway.llm.client import ModelServerOptions, OpenAICompatibleModel
from gateway.llm.providers.groq import create_groq_model
from gateway.llm.providers.openai import create_openai_model
from gateway.llm.resilient import ResilientModel, RetryPolicy
from gateway.ports.model import Model, ModelAnswer, ModelCall, ModelSink
from gateway.simulator import Simulator, SimulatorSettings, serve_simulator
from gateway.simulator.faults import Fault
from tests.eventually import eventually

OSS, QWEN, COMPOUND = "openai/gpt-oss-120b", "qwen/qwen3.8-27b", "groq/compound"
FAST = RetryPolicy(delay=0.001, max_wait=0.05)
SCHEMA = {
    "type": "object",
    "properties": {"expression": {"type": "string"}, "precision": {"type": "integer"}},
    "required": ["expression"],
    "additionalProperties": False,
}
CALCULATOR = ToolSpec("calculator", "tools", "calculator", "Exact arithmetic.", SCHEMA, read_only=True)


class Sink:
    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.refusal = ""
        self.calls: list[ToolCall] = []
        self.server_calls: list[tuple[str, str]] = []
        self.retries: list[tuple[str, bool, str | None]] = []
        self.failed_usage: list[tuple[Usage, float | None]] = []
        self.accepted_count = 0

    def on_accepted(self) -> None:
        self.accepted_count += 1

    def on_text(self, text: str) -> None:
        self.text += text

    def on_refusal(self, text: str) -> None:
        self.refusal += text

    def on_reasoning(self, text: str) -> None:
        self.reasoning += text

    def on_tool_call(self, call: ToolCall) -> None:
        self.calls.append(call)

    def on_server_tool_call(self, call: ToolCall, output: str) -> None:
        self.server_calls.append((call.name, output))

    def on_retry(self, reason: str, attempt: int, *, discard: bool = False, model: str | None = None) -> None:
        self.retries.append((reason, discard, model))
        if discard:
            self.text = self.reasoning = ""

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self.failed_usage.append((usage, cost_usd))

    @property
    def capacity(self) -> "Sink":
        return self

    def has_capacity(self) -> bool:
        return True

    async def wait_for_capacity(self) -> None: ...

    @property
    def decoded_calls(self) -> list[tuple[str, Any]]:
        return [(call.name, msgspec.json.decode(call.arguments)) for call in self.calls]

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _, _ in self.retries]


def make_call(prompt: str, *, model: str = OSS, tools: tuple[ToolSpec, ...] = (CALCULATOR,), **more: Any) -> ModelCall:
    messages = (Message(role="system", content="Help."), Message(role="user", content=prompt))
    return ModelCall(model, messages, tools, **more)


@pytest.fixture
async def upstream() -> AsyncGenerator[Simulator]:
    async with serve_simulator(SimulatorSettings(tokens_per_second=0, first_token_delay=0)) as simulator:
        yield simulator


@pytest.fixture
async def groq(upstream: Simulator) -> AsyncGenerator[OpenAICompatibleModel]:
    model = create_groq_model(ModelServerOptions(api_key="key", base_url=upstream.base_url, idle_timeout=30))
    yield model
    await model.close()


@pytest.fixture
def resilient(groq: OpenAICompatibleModel) -> ResilientModel:
    return ResilientModel(groq, Catalog(), policy=FAST)


@pytest.fixture
async def impatient(upstream: Simulator) -> AsyncGenerator[ResilientModel]:
    """Return a model with a short idle timeout."""
    model = create_groq_model(ModelServerOptions(api_key="key", base_url=upstream.base_url, idle_timeout=0.5))
    yield ResilientModel(model, Catalog(), policy=RetryPolicy(retries=20, delay=0.001, max_wait=0.05))
    await model.close()


# --- tool calls

SUM = [("calculator", {"expression": "23*19"})]
WRITTEN_CALL = '{"name": "calculator", "arguments": {"expression": "23*19"}}'


@pytest.mark.parametrize(
    ("written", "after_chunks"),
    [
        (WRITTEN_CALL, 0),
        (WRITTEN_CALL, 2),
        ('<function=calculator>{"expression": "23*19"}</function>', 0),
        (f"<TOOL_CALLS>[{WRITTEN_CALL}]</TOOL_CALLS>", 0),
        ('calculator(expression="23*19")', 2),
    ],
)
async def test_call_in_tool_use_failed_is_parsed_leniently(
    resilient: ResilientModel, upstream: Simulator, written: str, after_chunks: int
) -> None:
    upstream.faults.add_faults(Fault(kind="malformed_tool_call", failed_generation=written, after_chunks=after_chunks))
    sink = Sink()
    answer = await resilient.complete(make_call("What is 23*19?"), sink)
    assert (answer.finish_reason, sink.decoded_calls, sink.retries) == ("tool_calls", SUM, [])
    assert len(upstream.requests) == 1


async def test_malformed_call_is_repaired(resilient: ResilientModel, upstream: Simulator) -> None:
    calls = [{"name": "functions.Calculator", "arguments": {"expression": 23, "precision": "2", "extra": 1}}]
    upstream.faults.add_faults(Fault(kind="tool_calls", calls=calls))
    sink = Sink()
    await resilient.complete(make_call("What is 23*19?"), sink)
    assert sink.decoded_calls == [("calculator", {"expression": "23", "precision": 2})]
    assert sink.retries == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="unknown_tool"),
        Fault(kind="invalid_json_arguments"),
        Fault(kind="bad_arguments"),
        Fault(kind="malformed_tool_call", failed_generation="<function=what>is this"),
        Fault(kind="malformed_tool_call", failed_generation='{"name": "calculator", "arguments": {"expr'),
        Fault(kind="malformed_tool_call", after_chunks=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.failed_generation[:12]}",
)
async def test_unrepairable_call_is_requested_again_with_its_problem(
    resilient: ResilientModel, upstream: Simulator, fault: Fault
) -> None:
    upstream.faults.add_faults(fault)
    sink = Sink()
    answer = await resilient.complete(make_call("What is 23*19?"), sink)
    assert (answer.finish_reason, sink.decoded_calls) == ("tool_calls", SUM)
    assert sink.reasons == ["tool_call_unreadable"]
    last = upstream.requests[-1]["messages"][-1]
    assert last["role"] == "user"
    assert last["content"].startswith("Your tool call could not be made")


async def test_invalid_call_is_returned_with_its_problem_after_two_retries(
    resilient: ResilientModel, upstream: Simulator
) -> None:
    upstream.faults.add_faults(Fault(kind="bad_arguments", times=9))
    sink = Sink()
    await resilient.complete(make_call("What is 23*19?"), sink)
    assert len(sink.reasons) == 2
    assert len(sink.calls) == 1
    assert "expression" in sink.calls[0].problem


async def test_unreadable_calls_end_in_an_answer_without_tools(resilient: ResilientModel, upstream: Simulator) -> None:
    upstream.faults.add_faults(Fault(kind="malformed_tool_call", failed_generation="{{{", times=3))
    sink = Sink()
    answer = await resilient.complete(make_call("What is 23*19?"), sink)
    assert (answer.finish_reason, sink.calls, len(sink.reasons)) == ("stop", [], 3)
    assert "tools" not in upstream.requests[-1]
    assert sink.text


async def test_arguments_of_a_client_tool_are_not_validated(resilient: ResilientModel, upstream: Simulator) -> None:
    upstream.faults.add_faults(Fault(kind="bad_arguments"))
    sink = Sink()
    own = msgspec.structs.replace(CALCULATOR, client=True)
    await resilient.complete(make_call("What is 23*19?", tools=(own,)), sink)
    assert sink.decoded_calls == [("calculator", {"no_such_argument": [1, 2]})]


# --- what it takes


async def test_tokens_of_failed_attempts_are_counted(resilient: ResilientModel, upstream: Simulator) -> None:
    once = await resilient.complete(make_call("What is 23*19?"), Sink())
    for fault in (
        Fault(kind="bad_arguments"),  # the stream has ended, and told
        Fault(kind="malformed_tool_call", failed_generation="<function=what>is this"),  # refused, as written
        Fault(kind="cut", after_chunks=1),  # broken off
    ):
        upstream.faults.add_faults(fault)
        sink = Sink()
        twice = await resilient.complete(make_call("What is 23*19?"), sink)
        assert len(sink.reasons) == 1
        assert twice.usage.prompt_tokens > once.usage.prompt_tokens * 1.5, fault.kind
        assert twice.cost_usd == Catalog().get_model_info(OSS).calculate_cost(twice.usage)
        assert sink.failed_usage == []


async def test_tokens_of_a_call_that_fails_or_is_cancelled_are_recorded(
    resilient: ResilientModel, upstream: Simulator
) -> None:
    upstream.faults.add_faults(Fault(kind="cut", after_chunks=40))
    sink = Sink()
    with pytest.raises(ModelStreamBroken):
        await resilient.complete(make_call("count to 50", tools=()), sink)
    upstream.faults.add_faults(Fault(kind="stall", after_chunks=40))
    other = Sink()
    task = asyncio.create_task(resilient.complete(make_call("count to 50", tools=()), other))
    await eventually(lambda: other.text)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for each in (sink, other):
        [(usage, cost)] = each.failed_usage
        assert usage.completion_tokens >= (len(each.text) + len(each.reasoning)) // 4 > 0
        assert usage.prompt_tokens > 0
        assert cost == Catalog().get_model_info(OSS).calculate_cost(usage)
    upstream.faults.add_faults(Fault(kind="status", status=400))
    rejected = Sink()
    with pytest.raises(GatewayError):
        await resilient.complete(make_call("hello"), rejected)
    assert rejected.failed_usage == []


# --- failures


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="status", status=500),
        Fault(kind="status", status=498),
        Fault(kind="status", status=408),
        Fault(kind="status", status=409),
        Fault(kind="status", status=503, body="<html>not JSON</html>"),
        Fault(kind="status", status=429, headers={"retry-after": "0.01"}),
        Fault(kind="mid_stream_error"),
        Fault(kind="x_groq_error"),
        Fault(kind="cut"),
        Fault(kind="abort"),
        Fault(kind="garbage"),
        Fault(kind="cut", after_chunks=2),  # reasoning was shown, which a retry takes back
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.after_chunks}",
)
async def test_failure_before_the_first_text_is_retried(
    resilient: ResilientModel, upstream: Simulator, fault: Fault
) -> None:
    upstream.faults.add_faults(fault)
    sink = Sink()
    answer = await resilient.complete(make_call("Hello there", tools=()), sink)
    assert answer.finish_reason == "stop"
    assert len(sink.reasons) == 1
    assert len(upstream.requests) == 2
    assert sink.text


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(kind="cut", after_chunks=8), ModelStreamBroken),
        (Fault(kind="abort", after_chunks=8), ModelStreamBroken),
        (Fault(kind="mid_stream_error", after_chunks=8), ModelStreamBroken),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
async def test_failure_after_text_was_sent_is_raised(
    resilient: ResilientModel, upstream: Simulator, fault: Fault, error: type[GatewayError]
) -> None:
    upstream.faults.add_faults(fault)
    sink = Sink()
    with pytest.raises(error):
        await resilient.complete(
            make_call("count to 50", model=QWEN, tools=(), parameters=Parameters(reasoning_effort="none")), sink
        )
    assert (sink.retries, bool(sink.text)) == ([], True)


async def test_silence_before_the_first_text_is_retried(impatient: ResilientModel, upstream: Simulator) -> None:
    upstream.faults.add_faults(Fault(kind="slow_first_token"))
    sink = Sink()
    answer = await impatient.complete(make_call("Hello there", tools=()), sink)
    assert answer.finish_reason == "stop"
    assert sink.reasons
    assert len(upstream.requests) == len(sink.reasons) + 1
    assert sink.text


async def test_silence_after_text_was_sent_is_raised(impatient: ResilientModel, upstream: Simulator) -> None:
    upstream.faults.add_faults(
        Fault(kind="stall", after_chunks=8, times=21)
    )  # on a stalled machine, also retries stall
    sink = Sink()
    call = make_call("count to 50", model=QWEN, tools=(), parameters=Parameters(reasoning_effort="none"))
    with pytest.raises(ModelStreamBroken):
        await impatient.complete(call, sink)
    assert sink.text


@pytest.mark.parametrize(
    ("status", "code", "requests"),
    [
        (400, "model_request_refused", 1),
        (401, "model_key_refused", 1),
        (413, "model_request_refused", 1),
        (424, "model_request_refused", 1),
        (404, "model_not_found", 1),
        (500, "model_unavailable", 3),
    ],
)
async def test_rejection_is_raised_immediately_and_a_failure_after_retries(
    resilient: ResilientModel, upstream: Simulator, status: int, code: str, requests: int
) -> None:
    upstream.faults.add_faults(Fault(kind="status", status=status, times=9))
    with pytest.raises(GatewayError) as caught:
        await resilient.complete(make_call("Hello"), Sink())
    assert (caught.value.code, len(upstream.requests)) == (code, requests)


async def test_too_long_retry_after_is_raised_with_its_duration(resilient: ResilientModel, upstream: Simulator) -> None:
    upstream.faults.add_faults(Fault(kind="status", status=429, headers={"retry-after": "33"}))
    with pytest.raises(ModelRateLimited) as caught:
        await resilient.complete(make_call("Hello"), Sink())
    assert (caught.value.retry_after, len(upstream.requests)) == (33.0, 1)


async def test_prompt_over_the_context_window_is_rejected_before_it_is_sent(
    resilient: ResilientModel, upstream: Simulator
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        await resilient.complete(make_call("word " * 120_000), Sink())
    assert "150,0" in caught.value.message
    assert "131,072" in caught.value.message
    assert not upstream.requests


# --- other models


async def test_fallback_models_are_called_in_order(groq: OpenAICompatibleModel, upstream: Simulator) -> None:
    resilient = ResilientModel(groq, Catalog(), fallbacks=("openai/gpt-oss-20b", QWEN), policy=FAST)
    upstream.faults.add_faults(Fault(kind="status", status=500, match="gpt-oss", times=6))
    sink = Sink()
    await resilient.complete(make_call("Hello", tools=()), sink)
    assert [model for _, _, model in sink.retries if model] == ["openai/gpt-oss-20b", QWEN]
    assert [request["model"] for request in upstream.requests][-1] == QWEN
    assert sink.text


async def test_fallback_gets_only_parameters_that_it_takes(groq: OpenAICompatibleModel, upstream: Simulator) -> None:
    resilient = ResilientModel(groq, Catalog(), fallbacks=(QWEN,), policy=FAST)
    upstream.faults.add_faults(Fault(kind="status", status=500, match="gpt-oss", times=3))
    parameters = Parameters(reasoning_effort="medium", temperature=0.5)
    await resilient.complete(make_call("Hello", tools=(), parameters=parameters), Sink())
    first, last = upstream.requests[0], upstream.requests[-1]
    assert (first["reasoning_effort"], last["model"], last["temperature"]) == ("medium", QWEN, 0.5)
    assert "reasoning_effort" not in last


async def test_model_that_keeps_failing_is_not_called_while_its_circuit_is_open(
    groq: OpenAICompatibleModel, upstream: Simulator
) -> None:
    clock = [0.0]
    policy = RetryPolicy(retries=0, delay=0.001, failure_threshold=3, open_seconds=10.0)
    resilient = ResilientModel(groq, Catalog(), policy=policy, now=lambda: clock[0])
    upstream.faults.add_faults(Fault(kind="status", status=500, times=4))
    for _ in range(3):
        with pytest.raises(ModelUnavailable):
            await resilient.complete(make_call("Hello"), Sink())
    with pytest.raises(ModelUnavailable) as caught:
        await resilient.complete(make_call("Hello"), Sink())
    assert (caught.value.retry_after, len(upstream.requests)) == (10.0, 3)
    clock[0] = 11.0
    with pytest.raises(ModelUnavailable):
        await resilient.complete(make_call("Hello"), Sink())  # the trial call fails: the circuit stays open for longer
    assert len(upstream.requests) == 4
    clock[0] = 25.0
    with pytest.raises(ModelUnavailable):
        await resilient.complete(make_call("Hello"), Sink())
    assert len(upstream.requests) == 4
    clock[0] = 32.0
    await resilient.complete(make_call("Hello"), Sink())
    await resilient.complete(make_call("Hello"), Sink())
    assert len(upstream.requests) == 6


async def test_one_trial_call_follows_an_open_circuit(groq: OpenAICompatibleModel, upstream: Simulator) -> None:
    clock = [0.0]
    policy = RetryPolicy(retries=0, failure_threshold=1, open_seconds=10.0)
    resilient = ResilientModel(groq, Catalog(), policy=policy, now=lambda: clock[0])
    upstream.faults.add_faults(Fault(kind="status", status=500))
    with pytest.raises(ModelUnavailable):
        await resilient.complete(make_call("Hello"), Sink())
    clock[0] = 11.0
    results = await asyncio.gather(
        *(resilient.complete(make_call("Hello"), Sink()) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(each, ModelAnswer) for each in results) == 1
    assert len(upstream.requests) == 2


# --- leases


@pytest.mark.parametrize(
    ("faults", "attempts"),
    [
        ([Fault(kind="status", status=500, times=9)], 1),
        ([Fault(kind="status", status=500, times=9)], 2),
        ([Fault(kind="status", status=500, times=9)], 3),
        ([Fault(kind="bad_arguments", times=9)], 1),
        ([Fault(kind="malformed_tool_call", failed_generation="{{{", times=9)], 2),
    ],
    ids=["retry", "second retry", "fallback", "repair", "second repair"],
)
async def test_no_attempt_starts_once_the_turn_may_be_claimed(
    groq: OpenAICompatibleModel, upstream: Simulator, faults: list[Fault], attempts: int
) -> None:
    upstream.faults.add_faults(*faults)

    def require_lease() -> None:
        if len(upstream.requests) == attempts:
            raise TurnTakenOver

    model = ResilientModel(groq, Catalog(), fallbacks=(QWEN,), policy=FAST)
    with pytest.raises(TurnTakenOver):
        await model.complete(make_call("What is 23*19?", require_lease=require_lease), Sink())
    assert len(upstream.requests) == attempts


# --- tools in the prompt


async def test_model_without_functions_gets_tools_in_the_prompt_and_its_block_is_parsed(
    resilient: ResilientModel, upstream: Simulator
) -> None:
    upstream.faults.add_faults(Fault(kind="text", text=f"Let me see. <TOOL_CALLS>[{WRITTEN_CALL}]</TOOL_CALLS>"))
    sink = Sink()
    answer = await resilient.complete(make_call("What is 23*19?", model=COMPOUND), sink)
    assert (answer.finish_reason, sink.decoded_calls, sink.text.strip()) == ("tool_calls", SUM, "Let me see.")
    sent = upstream.requests[-1]
    assert "tools" not in sent
    assert '"expression"' in sent["messages"][0]["content"]
    call = make_call("What is 23*19?", model=COMPOUND)
    tool_call = ToolCall("c1", "calculator", '{"expression":"23*19"}')
    history = (
        Message(role="assistant", tool_calls=(tool_call,)),
        Message(role="tool", tool_call_id="c1", content="437"),
    )
    await resilient.complete(msgspec.structs.replace(call, messages=(*call.messages, *history)), Sink())
    messages = upstream.requests[-1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert "<TOOL_CALLS>" in messages[2]["content"]
    assert "437" in messages[3]["content"]


class MixedModel(Model):
    """Makes 100 native calls, and `written` ones in its text."""

    def __init__(self, written: int) -> None:
        self._written = written

    async def complete(self, call: ModelCall, sink: ModelSink) -> ModelAnswer:
        for number in range(100):
            sink.on_tool_call(ToolCall(f"c{number}", "calculator", '{"expression":"1"}'))
        sink.on_text(f"<TOOL_CALLS>[{', '.join([WRITTEN_CALL] * self._written)}]</TOOL_CALLS>")
        return ModelAnswer("stop", Usage())

    async def check(self) -> str | None:
        return None


async def test_written_calls_are_counted_together_with_native_ones() -> None:
    call, sink = make_call("What is 23*19?", model=COMPOUND), Sink()
    await ResilientModel(MixedModel(28), Catalog()).complete(call, sink)
    assert len(sink.calls) == 128
    with pytest.raises(ModelAnswerTooLong):
        await ResilientModel(MixedModel(29), Catalog()).complete(call, Sink())


@pytest.mark.parametrize("text", ["a < b and <b>bold</b>", "ends with <TOOL", "<TOOL_CALLS> is how I would do it"])
async def test_text_similar_to_a_call_block_is_sent_completely(
    resilient: ResilientModel, upstream: Simulator, text: str
) -> None:
    upstream.faults.add_faults(Fault(kind="text", text=text))
    sink = Sink()
    await resilient.complete(make_call("Hello", model=COMPOUND), sink)
    assert (sink.text, sink.calls) == (text, [])


# --- both upstreams


@pytest.fixture(params=["groq", "openai"])
async def either(request: pytest.FixtureRequest, upstream: Simulator) -> AsyncGenerator[Model]:
    if request.param == "groq":
        model = create_groq_model(ModelServerOptions(api_key="key", base_url=upstream.base_url, idle_timeout=30))
    else:
        model = create_openai_model(
            ModelServerOptions(api_key="key", base_url=f"{upstream.base_url}/openai/v1", idle_timeout=30)
        )
    yield ResilientModel(model, Catalog(), policy=FAST)
    await model.close()


async def test_contract_text_reasoning_and_usage(either: Model) -> None:
    sink: ModelSink = Sink()
    answer = await either.complete(make_call("Hello there", tools=()), sink)
    assert (answer.finish_reason, sink.accepted_count) == ("stop", 1)  # type: ignore[attr-defined]
    assert sink.text  # type: ignore[attr-defined]
    assert sink.reasoning  # type: ignore[attr-defined]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


async def test_contract_tool_calls_and_parameters(either: Model, upstream: Simulator) -> None:
    sink = Sink()
    parameters = Parameters(temperature=0.5, max_tokens=100, stop=("END",), seed=3)
    answer = await either.complete(make_call("What is 23*19?", tool_choice="auto", parameters=parameters), sink)
    assert (answer.finish_reason, sink.decoded_calls) == ("tool_calls", SUM)
    sent = upstream.requests[-1]
    assert (sent["temperature"], sent["stop"], sent["seed"], sent["tool_choice"]) == (0.5, ["END"], 3, "auto")
    assert 100 in (sent.get("max_completion_tokens"), sent.get("max_tokens"))


async def test_contract_failures(either: Model, upstream: Simulator) -> None:
    upstream.faults.add_faults(Fault(kind="status", status=401))
    with pytest.raises(GatewayError) as rejected:
        await either.complete(make_call("Hello"), Sink())
    assert rejected.value.code == "model_key_refused"
    upstream.faults.add_faults(Fault(kind="cut"))
    sink = Sink()
    await either.complete(make_call("Hello", tools=()), sink)
    assert sink.reasons == ["model_stream_broken"]
    assert await either.check() is None


async def test_contract_cancelling_reaches_the_server(either: Model, upstream: Simulator) -> None:
    upstream.faults.add_faults(Fault(kind="stall", after_chunks=3))
    task = asyncio.create_task(either.complete(make_call("count to 50", tools=()), Sink()))
    await upstream.wait_until(lambda simulator: simulator.open_streams == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await upstream.wait_until(lambda simulator: simulator.cancelled_streams == 1)
