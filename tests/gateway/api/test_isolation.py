"""Isolation of users, tested on every documented route.

Each route is called by another user, without a credential, and by a viewer. A route fails if it is missing here or in
`gateway/api/security/permissions.py`.
"""

import json
from collections.abc import AsyncGenerator
from typing import Any, Literal
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest
from yarl import URL

from gateway.api.security.permissions import ROUTES
from gateway.app import create_app
from gateway.config import Settings
from gateway.domain.messages import UserRole
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.stack import Gateway, serve_gateway


class Form(dict[str, str]):
    """Fields of a form with a file."""

    def build(self) -> aiohttp.FormData:
        form = aiohttp.FormData(self)
        form.add_field("file", b"hello", filename="hello.wav")
        return form


RouteKind = Literal["public", "shared", "own list", "owned", "creates", "admin"]
CHAT_BODY = {"messages": [{"role": "user", "content": "hello"}]}
UI_BODY = {"messages": [{"role": "user", "parts": [{"type": "text", "text": "hello"}]}]}
SERVER_BODY = {"name": "more", "url": "http://127.0.0.1:9/mcp"}
A2A_BODY = {"message": {"role": "ROLE_USER", "messageId": "1", "parts": [{"text": "hello"}]}}
EMBEDDING = {"model": "nomic-embed-text-v1_5", "input": "hello"}
SECRET = "the zebra is called Zanzibar"

ROUTE_KINDS: dict[tuple[str, str], tuple[RouteKind, Any]] = {
    ("GET", "/health"): ("public", None),
    ("GET", "/ready"): ("public", None),
    ("POST", "/api/v1/chat"): ("creates", CHAT_BODY),
    ("POST", "/api/v1/chat/stream"): ("creates", CHAT_BODY),
    ("POST", "/api/v1/ag-ui"): ("creates", CHAT_BODY | {"threadId": "shared", "runId": "r"}),
    ("POST", "/api/v1/ui-messages"): ("creates", UI_BODY),
    ("GET", "/api/v1/ui-messages/{id}/stream"): ("own list", None),
    ("GET", "/api/v1/turns/{turn_id}"): ("owned", None),
    ("GET", "/api/v1/turns/{turn_id}/events"): ("owned", None),
    ("POST", "/api/v1/turns/{turn_id}/input"): ("owned", {"input_id": "{input_id}", "action": "accept"}),
    ("POST", "/api/v1/turns/{turn_id}/cancel"): ("owned", None),
    ("POST", "/api/v1/turns/{turn_id}/fork"): ("owned", {"after_step": 0, "message": "hello"}),
    ("POST", "/api/v1/turns/{turn_id}/replay"): ("owned", {}),
    ("GET", "/api/v1/turns/{turn_id}/compare/{other_id}"): ("owned", None),
    ("GET", "/api/v1/webhooks/failures"): ("own list", None),
    ("GET", "/api/v1/conversations"): ("own list", None),
    ("GET", "/api/v1/conversations/{conversation_id}"): ("owned", None),
    ("GET", "/api/v1/conversations/{conversation_id}/export"): ("owned", None),
    ("PATCH", "/api/v1/conversations/{conversation_id}"): ("owned", {"title": "changed"}),
    ("DELETE", "/api/v1/conversations/{conversation_id}"): ("owned", None),
    ("GET", "/api/v1/history"): ("own list", None),
    ("GET", "/api/v1/search"): ("own list", None),
    ("GET", "/api/v1/tools"): ("shared", None),
    ("POST", "/api/v1/tools/{name}"): ("creates", {"expression": "1+1"}),
    ("GET", "/api/v1/tools/definitions"): ("admin", None),
    ("POST", "/api/v1/tools/definitions"): ("admin", {}),
    ("POST", "/api/v1/tools/definitions/import"): ("admin", {}),
    ("GET", "/api/v1/tools/definitions/{name}"): ("admin", None),
    ("PATCH", "/api/v1/tools/definitions/{name}"): ("admin", {}),
    ("DELETE", "/api/v1/tools/definitions/{name}"): ("admin", None),
    ("POST", "/api/v1/tools/definitions/{name}/test"): ("admin", {}),
    ("POST", "/api/v1/tools/definitions/{name}/publish"): ("admin", {}),
    ("GET", "/api/v1/mcp/servers"): ("shared", None),
    ("POST", "/api/v1/mcp/servers"): ("admin", SERVER_BODY),
    ("PATCH", "/api/v1/mcp/servers/{name}"): ("admin", {"disabled": True}),
    ("PUT", "/api/v1/mcp/servers/{name}"): ("admin", {"url": "http://127.0.0.1:9/mcp"}),
    ("DELETE", "/api/v1/mcp/servers/{name}"): ("admin", None),
    ("POST", "/api/v1/mcp/servers/{name}/tools/{tool}/approve"): ("admin", None),
    ("POST", "/api/v1/mcp/servers/{name}/instructions/approve"): ("admin", None),
    ("GET", "/api/v1/toolsets"): ("shared", None),
    ("POST", "/api/v1/toolsets"): ("admin", {"name": "few", "tools": ["calculator"]}),
    ("GET", "/api/v1/toolsets/{name}"): ("shared", None),
    ("PUT", "/api/v1/toolsets/{name}"): ("admin", {"tools": ["calculator"]}),
    ("DELETE", "/api/v1/toolsets/{name}"): ("admin", None),
    ("POST", "/api/v1/mcp/servers/{name}/sign-in"): ("creates", None),
    ("DELETE", "/api/v1/mcp/servers/{name}/sign-in"): ("creates", None),
    ("GET", "/api/v1/mcp/resources"): ("shared", None),
    ("GET", "/api/v1/mcp/resources/read"): ("own list", None),
    ("GET", "/api/v1/mcp/prompts"): ("shared", None),
    ("POST", "/api/v1/mcp/prompts/{name}"): ("shared", {}),
    ("GET", "/api/v1/models"): ("shared", None),
    ("POST", "/api/v1/turns/{turn_id}/feedback"): ("owned", {"rating": "down"}),
    ("GET", "/api/v1/usage"): ("own list", None),
    ("GET", "/api/v1/budget"): ("own list", None),
    ("GET", "/api/v1/admin/stats"): ("admin", None),
    ("GET", "/api/v1/admin/turns"): ("admin", None),
    ("GET", "/api/v1/admin/turns/active"): ("admin", None),
    ("GET", "/api/v1/admin/turns/{turn_id}/events"): ("admin", None),
    ("POST", "/api/v1/admin/turns/{turn_id}/cancel"): ("admin", None),
    ("GET", "/api/v1/admin/workers"): ("admin", None),
    ("GET", "/api/v1/audit"): ("admin", None),
    ("GET", "/api/v1/audit/export"): ("admin", None),
    ("GET", "/api/v1/admin/user-data"): ("admin", None),
    ("DELETE", "/api/v1/admin/user-data"): ("admin", None),
    ("GET", "/api/v1/keys"): ("own list", None),
    ("POST", "/api/v1/keys"): ("creates", {}),
    ("PATCH", "/api/v1/keys/{key_id}"): ("owned", {"name": "renamed"}),
    ("DELETE", "/api/v1/keys/{key_id}"): ("owned", None),
    ("POST", "/api/v1/keys/{key_id}/rotate"): ("owned", {}),
    ("POST", "/v1/chat/completions"): ("creates", CHAT_BODY),
    ("POST", "/v1/completions"): ("creates", {"prompt": "hello"}),
    ("GET", "/v1/models"): ("shared", None),
    ("GET", "/v1/models/{model}"): ("shared", None),
    ("POST", "/v1/messages"): ("creates", CHAT_BODY),
    ("POST", "/v1/messages/count_tokens"): ("creates", CHAT_BODY),
    ("POST", "/v1/responses"): ("creates", {"input": "hello"}),
    ("POST", "/v1/responses/input_tokens"): ("creates", {"input": "hello"}),
    ("POST", "/v1/conversations"): ("creates", {}),
    ("GET", "/v1/conversations/{conversation_id}"): ("owned", None),
    ("POST", "/v1/conversations/{conversation_id}"): ("owned", {"metadata": {"a": "b"}}),
    ("DELETE", "/v1/conversations/{conversation_id}"): ("owned", None),
    ("POST", "/v1/conversations/{conversation_id}/items"): ("owned", {"items": [{"role": "user", "content": "x"}]}),
    ("GET", "/v1/conversations/{conversation_id}/items"): ("owned", None),
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): ("owned", None),
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): ("owned", None),
    ("GET", "/v1/responses/{response_id}"): ("owned", None),
    ("GET", "/v1/responses/{response_id}/input_items"): ("owned", None),
    ("POST", "/v1/responses/{response_id}/cancel"): ("owned", None),
    ("DELETE", "/v1/responses/{response_id}"): ("owned", None),
    ("POST", "/v1/embeddings"): ("creates", EMBEDDING),
    ("POST", "/v1/audio/speech"): ("creates", {"model": "tts-1", "voice": "alloy", "input": "hello"}),
    ("POST", "/v1/audio/transcriptions"): ("creates", Form({"model": "whisper-1"})),
    ("POST", "/v1/audio/translations"): ("creates", Form({"model": "whisper-1"})),
    ("POST", "/a2a"): ("shared", {"jsonrpc": "2.0", "id": 1, "method": "ListTasks", "params": {}}),
    ("POST", "/a2a/v1/message:send"): ("creates", A2A_BODY),
    ("POST", "/a2a/v1/message:stream"): ("creates", A2A_BODY),
    ("GET", "/a2a/v1/tasks"): ("own list", None),
    ("GET", "/a2a/v1/tasks/{task_id}"): ("owned", None),
    ("GET", "/a2a/v1/tasks/{task_id}:subscribe"): ("owned", None),
    ("POST", "/a2a/v1/tasks/{task_id}:subscribe"): ("owned", None),
    ("POST", "/a2a/v1/tasks/{task_id}:cancel"): ("owned", None),
    ("POST", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs"): ("owned", {"url": "http://127.0.0.1:9/hook"}),
    ("GET", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs"): ("owned", None),
    ("GET", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs/{push_id}"): ("owned", None),
    ("DELETE", "/a2a/v1/tasks/{task_id}/pushNotificationConfigs/{push_id}"): ("owned", None),
    ("GET", "/a2a/v1/extendedAgentCard"): ("shared", None),
    ("POST", "/v1/files"): ("creates", Form({"purpose": "user_data"})),
    ("GET", "/v1/files"): ("own list", None),
    ("GET", "/v1/files/{file_id}"): ("owned", None),
    ("GET", "/v1/files/{file_id}/content"): ("owned", None),
    ("POST", "/v1/batches"): (
        "owned",
        {"input_file_id": "{file_id}", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    ),
    ("GET", "/v1/batches"): ("own list", None),
    ("GET", "/v1/batches/{batch_id}"): ("owned", None),
    ("POST", "/v1/batches/{batch_id}/cancel"): ("owned", None),
    ("DELETE", "/v1/files/{file_id}"): ("owned", None),
    ("POST", "/chatkit"): ("shared", {"type": "threads.list", "params": {}}),
    ("POST", "/stream"): ("creates", {"prompt": "hello"}),
    ("POST", "/api/chat/stream"): ("creates", {"user_prompt": "hello"}),
    ("GET", "/api/conversations/{conversation_id}"): ("owned", None),
    ("DELETE", "/api/conversations/{conversation_id}"): ("owned", None),
    ("POST", "/api/{user_id}/chat"): ("owned", {"message": "hello"}),
    ("GET", "/history"): ("own list", None),
    ("GET", "/history/{turn_id}"): ("owned", None),
    ("GET", "/search"): ("own list", None),
}
"""Kind and request body of each route.

public: needs no credential. shared: the same for all users. own list: lists objects of the caller. owned: one object of
one user, named in the path. creates: creates an object of the caller. admin: for admins only.
"""
REFUSED_READS = {
    "/a2a/v1/tasks/{task_id}:subscribe": 400,  # the task has ended
    "/a2a/v1/tasks/{task_id}/pushNotificationConfigs/{push_id}": 404,
}
"""Statuses of reads that even the owner of the resources is refused."""
QUERIES = {
    "/api/v1/search": "?query=zebra",
    "/search": "?query=zebra",
    "/api/v1/mcp/resources/read": "?uri=tasks://pending",
}


@pytest.fixture(scope="module")
def app() -> Any:
    settings = Settings(
        _env_file=None, database_url="postgresql://x/y", groq_api_key="x", mcp_server_url="http://x/mcp"
    )  # type: ignore[call-arg,arg-type]
    return create_app(settings)


@pytest.fixture
async def gateway(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    """A gateway with every route, and without rate limits."""
    async with serve_gateway(
        database_url, simulator, tools_url, upstream_files=True, rate_limit_requests=1_000_000
    ) as running:
        yield running


def get_documented_routes(app: Any) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}


def test_every_route_is_classified(app: Any) -> None:
    assert get_documented_routes(app) - set(ROUTES) == set()
    assert get_documented_routes(app) == set(ROUTE_KINDS)


def test_every_classified_route_exists(app: Any) -> None:
    undocumented = {("GET", path) for path in ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/metrics")}
    pages = {("GET", "start"), ("POST", "start"), ("GET", "callback"), ("GET", "client.json")}
    undocumented |= {(method, f"/api/v1/mcp/oauth/{page}") for method, page in pages}
    undocumented |= {(method, path) for path in ("/mcp", "/mcp/{toolset}") for method in ("GET", "POST", "DELETE")}
    undocumented |= {
        (method, f"/openai{path}") for method, path in get_documented_routes(app) if path.startswith("/v1/")
    }
    assert set(ROUTES) - get_documented_routes(app) <= undocumented


@pytest.mark.parametrize("route", ROUTE_KINDS, ids=" ".join)
def test_route_permissions_match_the_classification(route: tuple[str, str]) -> None:
    kind, _ = ROUTE_KINDS[route]
    permission = ROUTES[route]
    min_roles: dict[RouteKind, set[UserRole]] = {"admin": {"admin"}, "creates": {"user"}}
    reads = route[0] == "GET" or kind == "shared"
    assert permission.role in min_roles.get(kind, {"viewer"} if reads else {"user"})
    assert permission.public is (kind == "public")


class ResourceOwner:
    """A user with one resource of each kind."""

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self.ids: dict[str, str] = {}

    async def create_resources(self) -> None:
        keyring = self.keyring
        await keyring.create_key("ada")
        await keyring.post("root", "/api/v1/toolsets", {"name": "few", "tools": ["calculator"]})
        turn = (await keyring.chat("ada", f"Remember that {SECRET}", conversation_id="new")).body
        waiting_turn = (await keyring.chat("ada", f"Add a task to {SECRET}", approval="always")).body
        response = (await keyring.post("ada", "/v1/responses", {"input": SECRET})).body
        file_id, batch_id = await self.create_batch()
        self.ids = {
            "file_id": file_id,
            "batch_id": batch_id,
            "turn_id": turn["turn_id"],
            "other_id": turn["turn_id"],
            "task_id": turn["turn_id"],
            "push_id": "none",
            "conversation_id": turn["conversation_id"],
            "id": turn["conversation_id"],
            "response_id": response["id"],
            "item_id": f"in_{UUID(turn['turn_id']).hex}_0",
            "input_id": waiting_turn["inputs"][0]["input_id"],
            "key_id": str(keyring.rows["ada"].id),
            "user_id": "ada",
            "name": "calculator",
            "tool": "calculator",
            "model": "openai/gpt-oss-120b",
        }

    async def create_batch(self) -> tuple[str, str]:
        """Create a file and a batch at the model's server."""
        line = {"custom_id": SECRET, "method": "POST", "url": "/v1/embeddings", "body": EMBEDDING}
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", json.dumps(line).encode(), filename="in.jsonl")
        url, headers = f"{self.keyring.gateway.base_url}/v1/files", self.keyring.headers("ada")
        async with self.keyring.gateway.session.post(url, data=form, headers=headers) as response:
            file = await response.json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
        return file["id"], (await self.keyring.post("ada", "/v1/batches", body)).body["id"]

    def fill_path(self, path: str) -> str:
        template = path.replace("prompts/{name}", "prompts/plan_day").replace("servers/{name}", "servers/tools")
        template = template.replace("toolsets/{name}", "toolsets/few")
        return (template + QUERIES.get(path, "")).format(**self.ids)

    def fill_body(self, body: Any) -> Any:
        names = {f"{{{name}}}": value for name, value in self.ids.items()}
        return body and {name: names.get(str(value), value) for name, value in body.items()}

    async def send_request(self, route: tuple[str, str], headers: dict[str, str]) -> tuple[int, str]:
        method, path = route
        url = f"{self.keyring.gateway.base_url}{self.fill_path(path)}"
        body = ROUTE_KINDS[route][1]
        content: dict[str, Any] = {"data": body.build()} if isinstance(body, Form) else {"json": self.fill_body(body)}
        async with self.keyring.gateway.session.request(method, url, headers=headers, **content) as response:
            return response.status, (await response.read()).decode(errors="replace")


@pytest.fixture
async def ada(keyring: Keyring) -> ResourceOwner:
    owner = ResourceOwner(keyring)
    await owner.create_resources()
    return owner


async def test_unauthenticated_requests_are_rejected_on_all_routes(ada: ResourceOwner) -> None:
    for route, (kind, _) in ROUTE_KINDS.items():
        for headers in ({}, {"X-API-Key": "agw_00000000_wrong"}, {"Authorization": "Bearer a.b.c"}):
            status, text = await ada.send_request(route, headers)
            assert (status == 401) is (kind != "public"), (route, status)
            assert SECRET not in text


async def test_resources_of_another_user_are_not_found(ada: ResourceOwner, db: asyncpg.Connection) -> None:
    bob = await ada.keyring.create_key("bob")
    rows_before = await get_rows_of_ada(db)
    for route, (kind, _) in ROUTE_KINDS.items():
        status, text = await ada.send_request(route, bob)
        if kind == "owned":
            assert status == 404, (route, status, text)
        elif kind == "admin":
            assert status == 403, (route, status, text)
        elif route[1].endswith("/sign-in"):
            assert status == 409  # the tool server does not use sign-in
        else:
            assert status in (200, 201, 204), (route, status, text)
        assert SECRET not in text, route
        if kind != "owned":
            assert not [name for name in ("turn_id", "conversation_id", "key_id") if ada.ids[name] in text], route
    assert await get_rows_of_ada(db) == rows_before
    for path in ("/api/v1/turns/{turn_id}", "/api/v1/conversations/{conversation_id}", "/v1/responses/{response_id}"):
        assert (await ada.keyring.get("ada", ada.fill_path(path))).status == 200


async def test_paths_similar_to_a_route_are_rejected(keyring: Keyring) -> None:
    """Reject paths that only the router accepts.

    `$` in the patterns of the router also matches before a newline.
    """
    viewer = await keyring.create_key("ada", role="viewer", scopes=("tools",))
    ids = dict.fromkeys(
        (
            "turn_id",
            "other_id",
            "conversation_id",
            "id",
            "key_id",
            "response_id",
            "input_id",
            "file_id",
            "batch_id",
        ),
        str(uuid4()),
    )
    ids |= {"task_id": str(uuid4()), "push_id": "none"}
    ids |= {"item_id": "in_1", "user_id": "ada", "name": "tools", "tool": "calculator", "model": "m"}
    ids["toolset"] = "few"
    for method, path in ROUTES:
        for suffix in ("%0a", "%0A%0a", "%0d", "%00", "%20", ";x", "/%0a"):
            if path.endswith("}") and suffix != "%0a":
                continue  # a name may have any ending
            url = URL(f"{keyring.gateway.base_url}{path.format(**ids)}{suffix}", encoded=True)
            async with keyring.gateway.session.request(method, url, json={}, headers=viewer) as response:
                assert response.status in (403, 404, 405, 422), (method, url)
            async with keyring.gateway.session.request(method, url, json={}) as response:
                assert response.status == 401, (method, url)


async def test_health_probes_accept_head_requests(keyring: Keyring) -> None:
    await keyring.create_key("ada")
    for path in ("/health", "/ready"):
        async with keyring.gateway.session.head(f"{keyring.gateway.base_url}{path}") as response:
            assert response.status == 200
            assert "x-ratelimit-limit" not in response.headers


async def get_rows_of_ada(db: asyncpg.Connection) -> list[Any]:
    """Return the rows that belong to ada, to detect changes."""
    tables = {"turns": "status", "conversations": "title", "api_keys": "revoked_at::text", "tasks": "title"}
    schemas = {"tasks": "tools.tasks"}
    owner = {"tasks": "user_id"}
    return [
        await db.fetch(
            f"SELECT {column} FROM {schemas.get(table, table)} WHERE {owner.get(table, 'owner')} = 'ada' ORDER BY 1"
        )
        for table, column in tables.items()
    ]


async def test_resources_of_another_user_cannot_be_continued(ada: ResourceOwner) -> None:
    bob = await ada.keyring.create_key("bob")
    for path, body in (
        ("/api/v1/chat", CHAT_BODY | {"conversation_id": ada.ids["conversation_id"]}),
        ("/api/v1/chat", CHAT_BODY | {"parent_turn_id": ada.ids["turn_id"]}),
        ("/v1/responses", {"input": "go on", "previous_response_id": ada.ids["response_id"]}),
        ("/api/chat/stream", {"user_prompt": "go on", "conversation_id": ada.ids["conversation_id"]}),
    ):
        reply = await ada.keyring.gateway.post(path, body, headers=bob)
        assert reply.status == 404, (path, reply.body)


async def test_idempotency_keys_are_scoped_to_their_owner(ada: ResourceOwner) -> None:
    bob = await ada.keyring.create_key("bob")
    key = {"Idempotency-Key": "shared-key"}
    turns = [
        (await ada.keyring.gateway.post("/api/v1/chat", CHAT_BODY, headers=headers | key)).body["turn_id"]
        for headers in (ada.keyring.headers("ada"), bob, ada.keyring.headers("ada"))
    ]
    assert turns[0] == turns[2] != turns[1]


async def test_viewer_cannot_change_own_resources(keyring: Keyring, db: asyncpg.Connection) -> None:
    ada = ResourceOwner(keyring)
    await ada.create_resources()
    viewer = await keyring.create_key("ada", role="viewer")
    rows_before = await get_rows_of_ada(db)
    for route in ROUTE_KINDS:
        status, text = await ada.send_request(route, viewer)
        if ROUTES[route].role == "viewer":
            assert status in (REFUSED_READS.get(route[1], 200), 204), (route, status, text)
        else:
            assert status == 403, (route, status, text)
    assert await get_rows_of_ada(db) == rows_before
