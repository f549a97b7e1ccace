"""Tests of webhooks: signatures, delivery at least once, and allowed addresses."""

import asyncio
import base64
import hmac
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.simulator import Simulator
from gateway.simulator.faults import Fault
from gateway.webhooks.deliverer import WebhookDeliverer
from gateway_runtime.outgoing.private_targets import TargetPolicy
from tests.eventually import eventually
from tests.gateway.test_mcp_endpoint import connect_host
from tests.stack import Gateway, JsonObject, serve_asgi, serve_gateway

pytestmark = pytest.mark.faults
KEYS = (b"k" * 32, b"o" * 32)
SECRETS = tuple(SecretStr("whsec_" + base64.b64encode(key).decode()) for key in KEYS)
MESSAGES: list[JsonObject] = [{"role": "user", "content": "Hello."}]
FORMATS: dict[str, tuple[str, JsonObject]] = {
    "native": ("/api/v1/chat", {"messages": MESSAGES}),
    "chat completions": ("/v1/chat/completions", {"messages": MESSAGES}),
    "responses": ("/v1/responses", {"input": "Hello."}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 50}),
}


@dataclass
class Receiver:
    """A web server that records webhook messages.

    It answers with `statuses`, then 204; at `/slow`, not before `may_end`.
    """

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    slow_requests: int = 0
    may_end: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self, request: Request) -> Response:
        if request.url.path == "/slow":
            self.slow_requests += 1
            await self.may_end.wait()
        self.received.append((dict(request.headers), await request.body()))
        status = self.statuses.pop(0) if self.statuses else 204
        return RedirectResponse(f"{self.url}/again") if status == 302 else Response(status_code=status)

    @property
    def messages(self) -> list[JsonObject]:
        return [json.loads(body) for _, body in self.received]


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver]:
    receiver = Receiver()
    app = Starlette(routes=[Route("/{path:path}", receiver.receive, methods=["POST", "GET"])])
    async with serve_asgi(app) as receiver.url:
        yield receiver


def make_settings(receiver: Receiver, **others: Any) -> JsonObject:
    return {
        "webhook_hosts": ("127.0.0.1",),
        "webhook_secrets": SECRETS,
        "webhook_private_targets": (receiver.url.removeprefix("http://"),),
        **others,
    }


@asynccontextmanager
async def serve(
    database_url: str, simulator: Simulator, tools_url: str, receiver: Receiver, **others: Any
) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, **make_settings(receiver, **others)) as gateway:
        yield gateway


@pytest.fixture
async def hooked(
    database_url: str, simulator: Simulator, tools_url: str, receiver: Receiver
) -> AsyncGenerator[Gateway]:
    async with serve(database_url, simulator, tools_url, receiver) as gateway:
        yield gateway


def with_url(name: str, url: str) -> tuple[str, JsonObject]:
    path, body = FORMATS[name]
    return path, body | ({"webhook_url": url} if name == "native" else {"x_gateway": {"webhook_url": url}})


def verify(headers: dict[str, str], body: bytes, key: bytes) -> bool:
    """Verify a message as the libraries of Standard Webhooks do."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(key, content, "sha256")).decode()
    return f"v1,{expected}" in headers["webhook-signature"].split()


@pytest.mark.parametrize("name", FORMATS)
async def test_end_of_a_turn_is_told_with_signatures_of_all_keys(
    hooked: Gateway, receiver: Receiver, name: str
) -> None:
    path, body = with_url(name, f"{receiver.url}/hook")
    reply = await hooked.post(path, body)
    assert reply.status == 200, reply.body
    await eventually(lambda: receiver.received)
    headers, content = receiver.received[0]
    assert all(verify(headers, content, key) for key in KEYS)
    assert not verify(headers, content, b"x" * 32)
    message = json.loads(content)
    assert (message["type"], message["data"]["turn_id"]) == ("turn.completed", reply.headers["X-Turn-Id"])


async def test_task_for_the_agent_at_mcp_is_told(hooked: Gateway, receiver: Receiver) -> None:
    for url, permitted in ((f"{receiver.url}/hook", True), ("http://example.com/x", False)):
        async with connect_host(hooked, "auto") as client:
            meta = {"mcp-agent-gateway/webhook_url": url}
            result = await client.call_tool("ask_agent", {"prompt": "Hello."}, meta=meta)
        assert result.is_error is not permitted
    await eventually(lambda: receiver.received)
    assert [message["type"] for message in receiver.messages] == ["turn.completed"]


async def test_failure_and_question_are_told(hooked: Gateway, receiver: Receiver, db: asyncpg.Connection) -> None:
    url = f"{receiver.url}/hook"
    hooked.simulator.faults.add_faults(Fault(kind="status", status=400, body={"error": {"message": "no"}}))
    await hooked.chat("Hello.", webhook_url=url)
    await eventually(lambda: len(receiver.received) == 1)
    assert (receiver.messages[0]["type"], receiver.messages[0]["data"]["error_code"]) == (
        "turn.failed",
        "model_request_refused",
    )
    reply = await hooked.chat("Add a task to buy milk", approval="always", webhook_url=url)
    await eventually(lambda: len(receiver.received) == 2)
    message = receiver.messages[1]
    assert message["type"] == "input.required"
    input_id = message["data"]["input_id"]
    assert input_id == reply.body["inputs"][0]["input_id"]
    turn = reply.body["turn_id"]
    await hooked.post(f"/api/v1/turns/{turn}/input", {"input_id": input_id, "action": "accept"})
    await eventually(lambda: len(receiver.received) == 3)
    assert (receiver.messages[2]["type"], receiver.messages[2]["data"]["turn_id"]) == ("turn.completed", turn)

    async def is_all_delivered() -> bool:
        return not await db.fetchval("SELECT count(*) FROM webhook_messages WHERE delivered_at IS NULL")

    await eventually(is_all_delivered)


async def test_message_is_tried_again_until_its_end_and_then_listed(
    database_url: str,
    simulator: Simulator,
    tools_url: str,
    receiver: Receiver,
    gateway: Gateway,
    db: asyncpg.Connection,
) -> None:
    receiver.statuses = [500, 503, 302, 500]
    await _queue(db, gateway, f"{receiver.url}/hook")
    target = receiver.url.removeprefix("http://")
    deliverer = WebhookDeliverer(gateway.state.webhooks, TargetPolicy([target]), KEYS, retry_seconds=(0.0, 0.0, 0.0))
    for count in range(1, 5):
        assert await deliverer.deliver_due() == 1
        assert len(receiver.received) == count  # the redirect was not followed
    assert await deliverer.deliver_due() == 0
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    (failure,) = (await gateway.get("/api/v1/webhooks/failures")).body["failures"]
    assert (failure["event"], failure["attempts"], failure["error"]) == (
        "turn.completed",
        4,
        "The receiver answered 500.",
    )


async def test_message_of_a_worker_that_died_is_sent_by_another(
    gateway: Gateway, receiver: Receiver, db: asyncpg.Connection
) -> None:
    await _queue(db, gateway, f"{receiver.url}/hook")
    lost = await gateway.state.webhooks.claim(10, seconds=0.0)
    deliverer = WebhookDeliverer(gateway.state.webhooks, TargetPolicy([receiver.url.removeprefix("http://")]), KEYS)
    assert (len(lost), await deliverer.deliver_due()) == (1, 1)
    await gateway.state.webhooks.mark_failed(lost[0], "late", retry_seconds=None)  # its claim has ended
    assert await db.fetchval("SELECT failed_at IS NULL AND delivered_at IS NOT NULL FROM webhook_messages")


async def test_slow_receiver_delays_no_other_message(
    gateway: Gateway, receiver: Receiver, db: asyncpg.Connection
) -> None:
    deliverer = WebhookDeliverer(
        gateway.state.webhooks, TargetPolicy([receiver.url.removeprefix("http://")]), KEYS, poll_seconds=0.05
    )
    await _queue(db, gateway, f"{receiver.url}/slow")
    deliverer.task.start()
    try:
        await eventually(lambda: receiver.slow_requests)
        for _ in range(20):
            await _queue(db, gateway, f"{receiver.url}/hook")
        await eventually(lambda: len(receiver.received) == 20)
    finally:
        receiver.may_end.set()
        await eventually(lambda: len(receiver.received) == 21)
        await deliverer.task.stop()


async def test_unstored_and_background_turns_are_told(hooked: Gateway, receiver: Receiver) -> None:
    await hooked.chat("Hello.", webhook_url=f"{receiver.url}/hook", store=False)
    await eventually(lambda: len(receiver.received) == 1)
    body = {"input": "Hello.", "background": True, "x_gateway": {"webhook_url": f"{receiver.url}/hook"}}
    response = await hooked.post("/v1/responses", body)
    await eventually(lambda: len(receiver.received) == 2)
    assert [message["type"] for message in receiver.messages] == ["turn.completed"] * 2
    assert response.body["status"] in ("queued", "in_progress")


async def test_message_is_claimed_by_one_worker(gateway: Gateway, db: asyncpg.Connection) -> None:
    for _ in range(3):
        await _queue(db, gateway, "https://example.com/hook")
    batches = await asyncio.gather(*(gateway.state.webhooks.claim(2, seconds=60.0) for _ in range(3)))
    claimed = [message.id for batch in batches for message in batch]
    assert len(claimed) == len(set(claimed)) > 0
    assert await db.fetchval("SELECT count(*) FROM webhook_messages WHERE attempts > 1") == 0


async def test_receiver_that_is_gone_ends_the_attempts(
    gateway: Gateway, receiver: Receiver, db: asyncpg.Connection
) -> None:
    receiver.statuses = [410]
    await _queue(db, gateway, f"{receiver.url}/hook")
    deliverer = WebhookDeliverer(gateway.state.webhooks, TargetPolicy([receiver.url.removeprefix("http://")]), KEYS)
    await deliverer.deliver_due()
    assert await db.fetchval("SELECT failed_at IS NOT NULL FROM webhook_messages")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}", "169.254.169.254", "10.0.0.1"]
)
async def test_private_address_is_never_connected_to(
    gateway: Gateway, receiver: Receiver, db: asyncpg.Connection, host: str
) -> None:
    await _queue(db, gateway, f"http://{host.format(port=receiver.url.rpartition(':')[2])}/hook")
    await WebhookDeliverer(gateway.state.webhooks, TargetPolicy(), KEYS, retry_seconds=()).deliver_due()
    assert not receiver.received
    (failure,) = (await gateway.get("/api/v1/webhooks/failures")).body["failures"]
    assert "not public" in failure["error"] or "cannot be reached" in failure["error"]
    assert "127.0.0.1" not in failure["error"]


BAD_URLS = [
    "ftp://127.0.0.1/x",
    "http://user:secret@127.0.0.1/x",
    "http://example.com/x",
    "//127.0.0.1/x",
    "http://",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1/x#fragment",
    "http://127.0.0.1/x y",
    "http://127.0.0.1.example.com/",
    "",
]


@pytest.mark.parametrize("url", BAD_URLS)
async def test_url_that_the_policy_does_not_permit_is_refused(hooked: Gateway, url: str) -> None:
    for name in FORMATS:
        path, body = with_url(name, url)
        reply = await hooked.post(path, body)
        assert reply.status in (400, 422), name
    assert not hooked.simulator.requests


async def test_webhooks_are_off_by_default(gateway: Gateway) -> None:
    reply = await gateway.chat("Hello.", webhook_url="https://example.com/hook")
    assert reply.status in (400, 422)
    assert "WEBHOOK_HOSTS" in json.dumps(reply.body)


async def test_failures_of_others_are_not_listed(gateway: Gateway, db: asyncpg.Connection) -> None:
    await _queue(db, gateway, "http://10.0.0.1/hook")
    await WebhookDeliverer(gateway.state.webhooks, TargetPolicy(), KEYS, retry_seconds=()).deliver_due()
    await db.execute("UPDATE webhook_messages SET owner = 'another user'")
    assert (await gateway.get("/api/v1/webhooks/failures")).body == {"failures": []}


async def _queue(db: asyncpg.Connection, gateway: Gateway, url: str) -> None:
    """Queue the message of a turn, as its end does."""
    turn = (await gateway.chat("Hello.", tools=[])).body["turn_id"]
    await db.execute(
        "UPDATE turns SET status = 'running', options = options || jsonb_build_object('webhook_url', $2::text)"
        " WHERE id = $1",
        turn,
        url,
    )
    await db.execute("UPDATE turns SET status = 'completed' WHERE id = $1", turn)
