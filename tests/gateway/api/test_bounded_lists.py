"""Lists and exports of large turns, and the memory that they take."""

import json
import re
import tracemalloc
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import pytest
from fastapi import FastAPI, Response

from gateway.api.http.json_lists import build_list_response
from gateway.common.pages import MAX_PAGE_BYTES
from tests.stack import Gateway, ServeSharedGateway, insert_rows, serve_asgi

pytestmark = pytest.mark.timeout(240)
TIMEOUT = aiohttp.ClientTimeout(total=200)
CONVERSATION = UUID("00000000-0000-7000-8000-000000000001")
LONG_TURN = UUID("00000000-0000-7000-8000-000000000002")
INSERT_CONVERSATION = "INSERT INTO conversations (id, owner, title) VALUES ($1, $2, 'large')"
INSERT_TURN = """
INSERT INTO turns (id, owner, conversation_id, parent_id, status, prompt, response, messages, sent_messages, model_name,
    parameters, options, completed_at)
SELECT $1, $2, $3, $4, 'completed', 'camel ' || $5, '<r' || $5 || '>' || repeat(' ', $6), jsonb_build_array(
        jsonb_build_object('role', 'user', 'content', 'camel ' || $5),
        jsonb_build_object('role', 'assistant', 'content', '<m' || $5 || '>' || repeat('b', $6))
    ), 1, 'm', '{}', '{}', now()
"""
INSERT_CALL = """
INSERT INTO tool_calls (turn_id, call_id, step, tool, outcome, content) VALUES ($1, 'call-' || $2, 1, 'echo', 'ok',
    jsonb_build_array(jsonb_build_object('type', 'text', 'text', '<c' || $2 || '>' || repeat('c', $3))))
"""
INSERT_QUESTION = """
INSERT INTO turn_inputs (id, turn_id, call_id, question, expires_at) VALUES (gen_random_uuid(), $1, 'call-' || $2,
    jsonb_build_object('key', 'q', 'kind', 'question', 'message', '<q' || $2 || '>' || repeat('d', $3)), now())
"""
INSERT_EVENTS = "INSERT INTO turn_events VALUES ($1, $2, $2, $3)"


@dataclass(frozen=True)
class LargeTurns:
    """A gateway with large turns.

    One of them has large calls, questions and steps.
    """

    gateway: Gateway
    turns: int
    calls: int
    size: int

    @property
    def max_memory(self) -> int:
        """Bytes for the parts of a response, here and in the gateway."""
        return 10 * (MAX_PAGE_BYTES + self.size)

    async def insert(self, owner: str) -> None:
        for column in ("turns.response", "turns.messages", "tool_calls.content", "turn_inputs.question"):
            table, name = column.split(".")
            await insert_rows(self.gateway, f"ALTER TABLE {table} ALTER COLUMN {name} SET STORAGE EXTERNAL", [()])
        await insert_rows(self.gateway, INSERT_CONVERSATION, [(CONVERSATION, owner)])
        ids = [UUID(int=CONVERSATION.int + (n + 1 << 16)) for n in range(self.turns)]
        rows = zip(ids, [None, *ids[:-1]], range(self.turns), strict=True)
        values = [(id_, owner, CONVERSATION, parent, str(n), self.size) for id_, parent, n in rows]
        await insert_rows(self.gateway, INSERT_TURN, [*values, (LONG_TURN, owner, None, None, "long", self.size)])
        for statement in (INSERT_CALL, INSERT_QUESTION):
            await insert_rows(self.gateway, statement, [(LONG_TURN, str(n), self.size) for n in range(self.calls)])
        await insert_rows(self.gateway, INSERT_EVENTS, self._list_event_rows())

    def _list_event_rows(self) -> list[tuple[UUID, int, str]]:
        events: list[Any] = [{"type": "turn.started", "turn_id": str(LONG_TURN), "conversation_id": None, "model": "m"}]
        for n in range(self.calls):
            events += [
                {"type": "text.delta", "step": n + 1, "text": f"<s{n}>"},
                {"type": "text.delta", "step": n + 1, "text": "e" * self.size},
                {"type": "step.completed", "step": n + 1, "finish_reason": "stop", "usage": {}},
            ]
        events.append({"type": "turn.completed", "finish_reason": "stop", "usage": {}, "steps": 1, "duration_ms": 1.0})
        return [(LONG_TURN, n + 1, json.dumps(event)) for n, event in enumerate(events)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((16, 16, 300_000), id="16"),
        pytest.param((100, 60, 1_000_000), id="100", marks=pytest.mark.faults),
    ],
)
async def large(request: pytest.FixtureRequest, serve_shared_gateway: ServeSharedGateway) -> LargeTurns:
    large = LargeTurns(await serve_shared_gateway(rate_limit_enabled=False), *request.param)
    await large.insert("local")
    return large


@contextmanager
def limit_memory(max_bytes: int) -> Generator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= max_bytes
    finally:
        tracemalloc.stop()


async def read_marks(gateway: Gateway, path: str) -> tuple[list[str], int]:
    """Read a response in pieces; return its marks and its size.

    A mark is a text such as `<r12>`.
    """
    marks: list[str] = []
    size = 0
    rest = b""
    async with gateway.session.get(f"{gateway.base_url}{path}", timeout=TIMEOUT) as response:
        assert response.status == 200, await response.text()
        async for chunk in response.content.iter_chunked(64 * 1024):
            size += len(chunk)
            text = rest + chunk
            marks += [mark.decode() for mark in re.findall(rb"<[a-z]+\d+>", text)]
            rest = text[text.rfind(b"<") :] if b">" not in text[text.rfind(b"<") :] and b"<" in text else b""
    return marks, size


def list_marks(kind: str, count: int) -> list[str]:
    return [f"<{kind}{n}>" for n in range(count)]


async def walk(gateway: Gateway, path: str) -> AsyncGenerator[tuple[Any, int]]:
    cursor = ""
    while True:
        async with gateway.session.get(f"{gateway.base_url}{path}{cursor}", timeout=TIMEOUT) as response:
            body = await response.read()
            assert response.status == 200, body
        page = json.loads(body)
        yield page, len(body)
        if page["next"] is None:
            return
        cursor = f"&before={page['next']}"


@pytest.mark.parametrize("path", ["/api/v1/history?limit=200", "/api/v1/search?query=camel&limit=200"])
async def test_pages_of_large_turns_are_bounded_and_complete(large: LargeTurns, path: str) -> None:
    ids: list[str] = []
    with limit_memory(large.max_memory):
        async for page, size in walk(large.gateway, path):
            assert size <= MAX_PAGE_BYTES + 2 * large.size
            ids += [item["id"] for item in page["items"]]
    assert len(ids) == len(set(ids)) == large.turns + 1


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/history?limit=200", "r"),
        ("/search?query=camel&limit=200", "rr"),
        (f"/api/v1/conversations/{CONVERSATION}", "rmm"),
        (f"/api/v1/conversations/{CONVERSATION}/export", "rmm"),
        (f"/api/conversations/{CONVERSATION}", "r"),
        (f"/api/v1/turns/{LONG_TURN}", "cq"),
        (f"/v1/responses/resp_{LONG_TURN.hex}", "s"),
    ],
)
async def test_long_answer_is_sent_whole_in_little_memory(large: LargeTurns, path: str, kinds: str) -> None:
    with limit_memory(large.max_memory):
        marks, size = await read_marks(large.gateway, path)
    for kind in set(kinds):
        count = large.calls if kind in "cqs" else large.turns
        assert sorted(mark for mark in marks if mark[1] == kind and mark[2].isdigit()) == sorted(
            list_marks(kind, count) * kinds.count(kind)
        )
    assert size >= len(set(kinds)) * min(large.calls, large.turns) * large.size


async def test_export_of_a_user_is_sent_whole_in_little_memory(large: LargeTurns) -> None:
    with limit_memory(large.max_memory):
        marks, _ = await read_marks(large.gateway, "/api/v1/admin/user-data?user=local")
    assert {mark for mark in marks if mark[1] in "rmcqs"} >= {
        *list_marks("r", large.turns),
        *list_marks("m", large.turns),
        *list_marks("c", large.calls),
        *list_marks("q", large.calls),
        *list_marks("s", large.calls),
    }


async def test_audit_log_of_large_entries_is_bounded(large: LargeTurns) -> None:
    insert = """
    INSERT INTO audit_log (id, actor, action, subject, detail)
    SELECT gen_random_uuid(), 'eve', 'test', 'x', jsonb_build_object('text', '<a' || $1 || '>' || repeat('f', $2))
    """
    await insert_rows(large.gateway, insert, [(str(n), large.size) for n in range(large.calls)])
    ids: list[str] = []
    with limit_memory(large.max_memory):
        async for page, size in walk(large.gateway, "/api/v1/audit?limit=200&actor=eve"):
            assert size <= MAX_PAGE_BYTES + 2 * large.size
            ids += [item["id"] for item in page["items"]]
        marks, _ = await read_marks(large.gateway, "/api/v1/audit/export")
    assert len(ids) == len(set(ids)) == large.calls
    assert sorted(mark for mark in marks if mark[1] == "a") == sorted(list_marks("a", large.calls))


async def test_list_that_cannot_be_read_to_its_end_is_broken_off() -> None:
    async def generate() -> AsyncGenerator[str]:
        for _ in range(20):
            yield "x" * MAX_PAGE_BYTES
        raise RuntimeError

    app = FastAPI()

    @app.get("/")
    async def read() -> Response:
        return await build_list_response({"items": generate()})

    async with serve_asgi(app) as url, aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
