"""Recording of exchanges with a model server.

The simulator replays them.
"""

import asyncio
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.llm.http.sdk_client import create_http_client
from gateway.llm.recording import Recorder, Recordings
from gateway.simulator import Fault, Simulator, SimulatorSettings, serve_simulator
from tests.eventually import eventually
from tests.stack import Gateway, Reply, serve_gateway

SUM = "What is 23*19?"
AT_ONCE = SimulatorSettings(tokens_per_second=0, first_token_delay=0)
SETTINGS: dict[str, Any] = {"model_retry_delay": 0.01, "model_retries": 1}
BROKE = {"message": "broke", "type": "server_error"}
BUSY = {"error": {"message": "over capacity", "code": "capacity_exceeded"}}


def get_events(reply: Reply) -> list[Any]:
    """Return the events of a turn without its ids and times."""
    events: list[Any] = [reply.status, reply.body and reply.body["error"]["code"]]
    texts: dict[str, str] = {}
    for event in reply.events:
        data = event.data if isinstance(event.data, dict) else {}
        match event.type:
            case "text.delta" | "reasoning.delta":
                name = f"{event.type} {data['step']}"
                texts[name] = texts.get(name, "") + data["text"]
            case "tool.call":
                events.append((event.type, data["tool"], data["arguments"]))
            case "tool.result":
                events.append((event.type, data["outcome"], data["structured"]))
            case "model.retry":
                events.append((event.type, data["reason"], data["attempt"], data["discard"]))
            case "step.completed" | "turn.completed":
                events.append((event.type, data["finish_reason"], data["usage"], data["cost_usd"]))
            case "turn.failed":
                events.append((event.type, data["error"]))
            case _:
                events.append(event.type)
    return [*events, texts]


FAULTS: dict[str, tuple[list[Fault], int]] = {
    "none": ([], 2),
    "refused once": ([Fault(kind="status", status=503, headers={"retry-after": "0"}, body=BUSY)], 3),
    "refused always": ([Fault(kind="status", status=503, body=BUSY, times=9)], 2),
    "rate limited": ([Fault(kind="status", status=429, headers={"retry-after": "99"}, body=BUSY)], 1),
    "no JSON": ([Fault(kind="status", status=502, body="<html>Bad gateway</html>", times=9)], 2),
    "error inside": ([Fault(kind="mid_stream_error", after_chunks=15, error=BROKE)], 1),
    "error in the last chunk": ([Fault(kind="x_groq_error", after_chunks=0, times=2)], 2),
    "no tool call": (
        [Fault(kind="malformed_tool_call", failed_generation="<function=calculator>{", after_chunks=2)],
        3,
    ),
    "garbage": ([Fault(kind="garbage", times=2)], 2),
    "cut": ([Fault(kind="cut", after_chunks=15)], 1),
    "broken": ([Fault(kind="abort", after_chunks=15)], 1),
    "silent": ([Fault(kind="stall", after_chunks=15)], 1),
    "in crumbs": ([Fault(kind="split_frames")], 2),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_recorded_turn_is_replayed_exactly(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path, fault: str
) -> None:
    plan, exchanges = FAULTS[fault]
    simulator.faults.add_faults(*[Fault(**{f: getattr(each, f) for f in each.__struct_fields__}) for each in plan])
    prompt = "count to 40" if any(each.after_chunks == 15 for each in plan) else SUM
    settings = SETTINGS | {"model_idle_timeout": 1 if fault == "silent" else 30}
    async with serve_gateway(database_url, simulator, tools_url, model_record_dir=tmp_path, **settings) as gateway:
        live = get_events(await gateway.chat_stream(prompt))
    assert len(list(tmp_path.glob("*.json"))) == exchanges
    async with (
        serve_simulator(SimulatorSettings(0, 0, replay=tmp_path)) as replaying,
        serve_gateway(database_url, replaying, tools_url, **settings) as gateway,
    ):
        assert get_events(await gateway.chat_stream(prompt)) == live
        assert replaying.replayed_requests == len(replaying.requests) == exchanges
        if fault == "rate limited":
            return  # the limiter asks no more
        assert get_events(await gateway.chat_stream(prompt)) == live
        assert "Hello" in (await gateway.chat("Hello")).body["response"]  # for that, its own brain
        assert replaying.replayed_requests == exchanges * 2


async def test_recording_has_the_received_chunks_and_no_key(simulator: Simulator, tmp_path: Path) -> None:
    simulator.faults.add_faults(
        Fault(kind="text", text="Ein Läufer läuft über Zürich. " * 40), Fault(kind="split_frames")
    )
    recorder = Recorder(tmp_path)
    received: list[bytes] = []
    body = {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": "x"}], "stream": True}
    url, headers = f"{simulator.base_url}/openai/v1/chat/completions", {"Authorization": "Bearer gsk_secret_of_ours"}
    async with (
        create_http_client(recorder) as client,
        client.stream("POST", url, json=body, headers=headers) as response,
    ):
        received += [chunk async for chunk in response.aiter_raw()]
    (file,) = tmp_path.glob("*.json")
    known = Recordings(tmp_path).take_response(json.dumps(dict(reversed(body.items()))).encode())
    assert known is not None
    assert known.chunks == received
    assert (known.status, known.end, known.request) == (200, "complete", body)
    assert known.headers["content-type"].startswith("text/event-stream")
    assert "x-ratelimit-limit-tokens" in known.headers
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "uthorization" not in file.read_text()
    assert "gsk_" not in file.read_text()


@pytest.mark.parametrize(
    "secret",
    ["gsk_abcdefghijklmnop0123456789", "sk-proj-abcdefghijklmnop_0123456789", "our-own-key-of-some-other-kind"],
)
async def test_keys_are_masked_everywhere_in_a_recording(simulator: Simulator, tmp_path: Path, secret: str) -> None:
    """A key that the model repeats over several chunks is masked, too."""
    recorder = Recorder(tmp_path, key="our-own-key-of-some-other-kind")
    body = {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": f"My key is {secret}, thanks"}]}
    url, headers = f"{simulator.base_url}/openai/v1/chat/completions", {"Authorization": f"Bearer {secret}"}
    async with create_http_client(recorder) as client:
        for more in ({}, {"stream": True}):
            async with client.stream("POST", url, json=body | more, headers=headers) as response:
                response_body = b"".join([chunk async for chunk in response.aiter_raw()])
            assert secret[:6].encode() in response_body
    assert len(list(tmp_path.glob("*.json"))) == 2
    for file in tmp_path.glob("*.json"):
        written = file.read_text()
        assert not [at for at in range(len(secret) - 5) if secret[at : at + 6] in written]
        assert "*" * len(secret) in written
        assert "My key is" in written


async def test_only_the_newest_recordings_are_kept(simulator: Simulator, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, max_files=3)
    url, headers = f"{simulator.base_url}/openai/v1/chat/completions", {"Authorization": "Bearer k"}
    async with httpx.AsyncClient(event_hooks=recorder.hooks, timeout=30) as client:
        for n in range(5):
            body = {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": f"Number {n}"}]}
            await client.post(url, json=body, headers=headers)
        await client.get(f"{simulator.base_url}/openai/v1/models", headers=headers)
    prompts = [json.loads(file.read_text())["request"]["messages"][0]["content"] for file in sorted(tmp_path.iterdir())]
    assert prompts == ["Number 2", "Number 3", "Number 4"]


async def test_turn_completes_if_the_recording_directory_is_not_writable(
    database_url: str, simulator: Simulator, tmp_path: Path
) -> None:
    regular_file = tmp_path / "file"
    regular_file.touch()
    async with serve_gateway(database_url, simulator, None, model_record_dir=regular_file / "x") as gateway:
        assert (await gateway.chat("Hello")).status == 200


@pytest.mark.parametrize("option", ["argument", "environment"])
async def test_simulator_process_replays_recordings(simulator: Simulator, tmp_path: Path, option: str) -> None:
    simulator.faults.add_faults(Fault(kind="text", text="As it was said then."))
    body = {"model": "openai/gpt-oss-120b", "messages": [{"role": "user", "content": "Hello"}]}
    path, headers = "/openai/v1/chat/completions", {"Authorization": "Bearer k"}
    async with httpx.AsyncClient(event_hooks=Recorder(tmp_path).hooks, timeout=30) as client:
        await client.post(f"{simulator.base_url}{path}", json=body, headers=headers)
    argv = [sys.executable, "-m", "gateway.simulator", *(["--replay", str(tmp_path)] if option == "argument" else [])]
    environment = os.environ | ({"SIMULATOR_REPLAY": str(tmp_path)} if option == "environment" else {})
    process = await asyncio.create_subprocess_exec(*argv, env=environment, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        base_url = json.loads(await process.stdout.readline())["simulator"]
        async with httpx.AsyncClient(timeout=30) as client:
            answer = (await client.post(f"{base_url}{path}", json=body, headers=headers)).json()
    finally:
        process.terminate()
        await process.wait()
    assert answer["choices"][0]["message"]["content"] == "As it was said then."


async def test_invalid_recording_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    async with serve_simulator(SimulatorSettings(0, 0, replay=tmp_path)) as simulator:
        assert simulator.base_url


async def test_cancelled_turn_is_recorded_up_to_the_cancellation(
    database_url: str, slow: Simulator, tmp_path: Path
) -> None:
    async with serve_gateway(database_url, slow, None, model_record_dir=tmp_path) as gateway:
        await cancel_turn(gateway)
        await slow.wait_until(lambda s: s.cancelled_streams == 1)
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["end"] == "left"


async def cancel_turn(gateway: Gateway) -> None:
    async with gateway.stream("count to 100000") as stream:
        await stream.read_until("text.delta")
    await eventually(lambda: not gateway.state.turn_service.running_turns)


@pytest.fixture
async def slow() -> Any:
    async with serve_simulator(SimulatorSettings(tokens_per_second=300, first_token_delay=0)) as running:
        yield running
