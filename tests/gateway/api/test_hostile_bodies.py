"""Small requests that try to use gigabytes and seconds."""

import asyncio
import json
import tracemalloc
from typing import Any, get_args

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from benchmarks.hostile_bodies import MAX_MEMORY_BYTES, TURN_BYTES, HostileBody, list_hostile_bodies, send_body
from gateway.api.routes.registration import register_routes
from gateway.domain.errors import GatewayError
from gateway_runtime import json_limits
from gateway_runtime.json_limits import TooDeep, TooManyItems, check_json, check_mcp_message
from gateway_runtime.request_body import read_body
from tests.auth_helpers import Keyring
from tests.stack import Gateway

BODIES = list_hostile_bodies()


def list_body_models() -> list[type[BaseModel]]:
    """List the models of all request bodies, and those of their fields."""
    models: dict[type[BaseModel], None] = {}

    def add(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in models:
            models[annotation] = None
            for field in annotation.model_fields.values():
                add(field.annotation)
        for argument in get_args(annotation):
            add(argument)

    app = FastAPI()
    register_routes(app)
    for route in app.routes:
        if isinstance(route, APIRoute) and route.body_field is not None:
            add(route.body_field.field_info.annotation)
    return list(models)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{body.path}-{body.name}")
async def test_hostile_body_is_rejected_within_little_memory(shared_gateway: Gateway, body: HostileBody) -> None:
    assert len(body.body) <= TURN_BYTES + 200_000
    tracemalloc.start()
    try:
        status = await asyncio.to_thread(send_body, shared_gateway.base_url, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 400 <= status < 500 or (status == 200 and body.path.startswith("/api/v1/tools/"))  # the tool refuses it
    assert peak - len(body.body) <= MAX_MEMORY_BYTES


async def test_body_of_many_values_is_not_decoded(shared_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    load = json.loads

    def record_load(text: Any, *arguments: Any, **options: Any) -> Any:
        decoded.append(len(text))
        return load(text, *arguments, **options)

    monkeypatch.setattr(json, "loads", record_load)
    body = '{"input":[' + ",".join(["{}"] * 500_000) + "]}"
    for path in ("/v1/responses", "/v1/chat/completions", "/api/v1/chat", "/stream", "/mcp", "/api/v1/keys"):
        async with shared_gateway.session.post(
            f"{shared_gateway.base_url}{path}",
            data=body[: 200_000 if path in ("/mcp", "/api/v1/keys") else None],
            headers={"Content-Type": "application/json"},
        ) as response:
            assert response.status in (400, 422)
            assert "values" in await response.text()
    assert max(decoded, default=0) < 100_000  # others of this process decode small texts


@pytest.mark.parametrize("path", ["/mcp", "/api/v1/mcp/prompts/plan_day"])
async def test_viewer_cannot_send_wrong_arguments_by_the_thousand(
    gateway: Gateway, keyring: Keyring, path: str
) -> None:
    await keyring.create_key("eve", role="viewer")
    arguments = {f"k{number}": 1 for number in range(20_000)}
    body: Any = {"arguments": arguments}
    if path == "/mcp":
        params = {"name": "plan_day", "arguments": arguments}
        body = {"jsonrpc": "2.0", "id": 1, "method": "prompts/get", "params": params}
    headers = {"X-API-Key": keyring.secrets["eve"], "Accept": "application/json, text/event-stream"}
    reply = await gateway.post(path, body, headers=headers)
    assert reply.status == 422
    assert len(json.dumps(reply.body)) < 500


async def test_each_kind_of_route_has_a_limit_of_its_own(shared_gateway: Gateway) -> None:
    sizes = {"/api/v1/chat": 4 * 1024 * 1024, "/api/v1/tools/x": 1024 * 1024, "/mcp": 1024 * 1024}
    for path, size in {**sizes, "/api/v1/keys": 256 * 1024, "/api/v1/mcp/servers": 256 * 1024}.items():
        for length, statuses in ((size, (400, 404, 406, 422)), (size + 1, (413,))):
            url = f"{shared_gateway.base_url}{path}"
            headers = {"Content-Type": "application/json"}
            async with shared_gateway.session.post(url, data=b" " * length, headers=headers) as response:
                assert response.status in statuses, (path, length)


async def test_large_arguments_of_a_tool_are_accepted(shared_gateway: Gateway) -> None:
    reply = await shared_gateway.post("/api/v1/tools/calculator", {"expression": list(range(40_000))})
    assert (reply.status, reply.body["outcome"]) == (200, "error")


def count_problems(model: type[BaseModel], body: Any) -> int:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    except GatewayError:  # a value that the gateway does not support
        return 1
    return 0


@pytest.mark.parametrize("model", list_body_models())
def test_only_the_first_problems_of_a_body_are_described(model: type[BaseModel]) -> None:
    names = [f"k{number}" for number in range(2_000)]
    wrong: list[Any] = [[1] * 2_000, [{}] * 2_000, dict.fromkeys(names, 1), {key: [] for key in names}]
    bodies: list[Any] = [*wrong, *({name: value} for name in model.model_fields for value in wrong)]
    for body in bodies:
        assert count_problems(model, body) <= 12


def count_exactly(value: Any) -> int:
    if isinstance(value, list):
        return max(1, len(value)) + sum(map(count_exactly, value))
    if isinstance(value, dict):
        return max(1, 2 * len(value)) + sum(map(count_exactly, value.values()))
    return 0


@pytest.mark.parametrize(
    "value",
    [
        ["a,b", 'a"b,', "\\", '\\",[', "[[", {"{": ":"}],
        {"a": [1, [2, 3], {}], '"': [], "\\\\": ["\u2222", "\u002c"]},
        ["\U0001f600,", "\ud7ff[", "\x01"],
    ],
)
def test_separators_in_strings_are_not_counted(value: Any) -> None:
    exact = count_exactly(value)
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-32-be"):
            check_json(text.encode(encoding), max_items=exact)
            with pytest.raises(TooManyItems):
                check_json(text.encode(encoding), max_items=exact - 1)


def test_levels_are_counted_outside_of_strings() -> None:
    for depth, text in ((3, '[{"a":[]}]'), (2, '["[[[[", {"]": "\\"[["}]')):
        check_json(text.encode(), max_items=100, max_depth=depth)
        with pytest.raises(TooDeep):
            check_json(text.encode() + b" ", max_items=100, max_depth=depth - 1)


def test_only_arguments_of_a_tool_may_be_large() -> None:
    numbers = list(range(5_000))
    large = {"name": "x", "arguments": {"a": numbers}}
    for method, params, accepted in (
        ("tools/call", large, True),
        ("prompts/get", large, False),
        ("tools/call", {"name": "x", "_meta": numbers}, False),
        ("tools/call", {**large, "inputResponses": {"a": numbers}}, False),
    ):
        text = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        items = check_json(text, max_items=50_000)
        if accepted:
            check_mcp_message(text, items)
        else:
            with pytest.raises(TooManyItems):
                check_mcp_message(text, items)
    hidden = b'{"method":"tools/call","params":{"arguments":%s,"arguments":{}}}' % json.dumps(numbers).encode()
    with pytest.raises(TooManyItems):
        check_mcp_message(hidden, check_json(hidden, max_items=50_000))


def test_depth_is_checked_in_a_bounded_number_of_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = 0

    class CountingBytes(bytes):
        def replace(self, *arguments: Any) -> "CountingBytes":
            nonlocal passes
            passes += 1
            return CountingBytes(super().replace(*arguments))

        def translate(self, *arguments: Any) -> "CountingBytes":
            return CountingBytes(super().translate(*arguments))

    monkeypatch.setattr(json_limits, "_remove_strings", lambda text, _limit: CountingBytes(text))
    with pytest.raises(TooDeep):
        check_json(b"[" * 20_000 + b"]" * 20_000, max_items=50_000)
    assert passes <= json_limits.MAX_DEPTH


def test_ordinary_request_is_checked_without_removing_its_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two counts and one translation, for any number of words."""
    calls: list[str] = []

    class CountingBytes(bytes):
        def __contains__(self, key: Any) -> bool:
            calls.append("contains")
            return super().__contains__(key)

        def count(self, *arguments: Any) -> int:
            calls.append("count")
            return super().count(*arguments)

        def translate(self, *arguments: Any) -> bytes:
            calls.append("translate")
            return super().translate(*arguments)

    def refuse(*_: Any) -> bytes:
        raise AssertionError("the strings of an ordinary body were removed")

    monkeypatch.setattr(json_limits, "_remove_strings", refuse)
    for words in (1, 100_000):
        body = b'{"messages":[{"role":"user","content":"' + b"What is 23*19? " * words + b'"}],"stream":true}'
        calls.clear()
        assert check_json(CountingBytes(body), max_items=50_000) == 9
        assert sorted(calls) == ["contains", "count", "count", "translate"]


async def test_body_in_tiny_chunks_takes_little_memory() -> None:
    chunks = 20_000
    messages = ({"body": b"%02d" % (n % 100), "more_body": n < chunks} for n in range(1, chunks + 1))

    async def receive() -> Any:
        return {"type": "http.request", **next(messages)}

    tracemalloc.start(1)
    try:
        body = await read_body({"headers": []}, receive, max_bytes=1_000_000, timeout_seconds=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert body is not None
    assert len(body) == 2 * chunks
    assert peak < 8 * len(body)
