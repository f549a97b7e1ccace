"""What one user owns is not there for another: every route of the OpenAPI document, as the wrong user, as nobody and as
a viewer. A route that nobody has classified here, and in `gateway/api/security/permissions.py`, fails."""

from typing import Any, Literal
from uuid import uuid4

import asyncpg
import pytest
from yarl import URL

from gateway.api.security.permissions import ROUTES
from gateway.app import create_app
from gateway.config import Settings
from gateway.domain.messages import UserRole
from tests.auth_helpers import Keyring

Kind = Literal["public", "shared", "own", "owned", "begins", "admin"]
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
SERVER = {"name": "more", "url": "http://127.0.0.1:9/mcp"}
SECRET = "the zebra is called Zanzibar"

# public: nobody is asked. shared: the same for all. own: a list of one's own. owned: one thing of somebody's, named in
# the path. begins: makes something of one's own. admin: for admins alone. With a body, where one is taken.
KINDS: dict[tuple[str, str], tuple[Kind, Any]] = {
    ("GET", "/health"): ("public", None),
    ("GET", "/ready"): ("public", None),
    ("POST", "/api/v1/chat"): ("begins", CHAT),
    ("POST", "/api/v1/chat/stream"): ("begins", CHAT),
    ("GET", "/api/v1/turns/{turn_id}"): ("owned", None),
    ("GET", "/api/v1/turns/{turn_id}/events"): ("owned", None),
    ("POST", "/api/v1/turns/{turn_id}/input"): ("owned", {"input_id": "{input_id}", "action": "accept"}),
    ("POST", "/api/v1/turns/{turn_id}/cancel"): ("owned", None),
    ("GET", "/api/v1/conversations"): ("own", None),
    ("GET", "/api/v1/conversations/{conversation_id}"): ("owned", None),
    ("GET", "/api/v1/conversations/{conversation_id}/export"): ("owned", None),
    ("PATCH", "/api/v1/conversations/{conversation_id}"): ("owned", {"title": "mine now"}),
    ("DELETE", "/api/v1/conversations/{conversation_id}"): ("owned", None),
    ("GET", "/api/v1/history"): ("own", None),
    ("GET", "/api/v1/search"): ("own", None),
    ("GET", "/api/v1/tools"): ("shared", None),
    ("POST", "/api/v1/tools/{name}"): ("begins", {"expression": "1+1"}),
    ("GET", "/api/v1/mcp/servers"): ("shared", None),
    ("POST", "/api/v1/mcp/servers"): ("admin", SERVER),
    ("PATCH", "/api/v1/mcp/servers/{name}"): ("admin", {"disabled": True}),
    ("DELETE", "/api/v1/mcp/servers/{name}"): ("admin", None),
    ("POST", "/api/v1/mcp/servers/{name}/tools/{tool}/approve"): ("admin", None),
    ("POST", "/api/v1/mcp/servers/{name}/sign-in"): ("begins", None),
    ("DELETE", "/api/v1/mcp/servers/{name}/sign-in"): ("begins", None),
    ("GET", "/api/v1/mcp/resources"): ("shared", None),
    ("GET", "/api/v1/mcp/resources/read"): ("own", None),
    ("GET", "/api/v1/mcp/prompts"): ("shared", None),
    ("POST", "/api/v1/mcp/prompts/{name}"): ("shared", {}),
    ("GET", "/api/v1/models"): ("shared", None),
    ("POST", "/api/v1/turns/{turn_id}/feedback"): ("owned", {"rating": "down"}),
    ("GET", "/api/v1/usage"): ("own", None),
    ("GET", "/api/v1/budget"): ("own", None),
    ("GET", "/api/v1/admin/stats"): ("admin", None),
    ("GET", "/api/v1/audit"): ("admin", None),
    ("GET", "/api/v1/keys"): ("own", None),
    ("POST", "/api/v1/keys"): ("begins", {}),
    ("DELETE", "/api/v1/keys/{key_id}"): ("owned", None),
    ("POST", "/v1/chat/completions"): ("begins", CHAT),
    ("GET", "/v1/models"): ("shared", None),
    ("GET", "/v1/models/{model}"): ("shared", None),
    ("POST", "/v1/responses"): ("begins", {"input": "hello"}),
    ("GET", "/v1/responses/{response_id}"): ("owned", None),
    ("GET", "/v1/responses/{response_id}/input_items"): ("owned", None),
    ("POST", "/v1/responses/{response_id}/cancel"): ("owned", None),
    ("DELETE", "/v1/responses/{response_id}"): ("owned", None),
    ("POST", "/stream"): ("begins", {"prompt": "hello"}),
    ("POST", "/api/chat/stream"): ("begins", {"user_prompt": "hello"}),
    ("GET", "/api/conversations/{conversation_id}"): ("owned", None),
    ("DELETE", "/api/conversations/{conversation_id}"): ("owned", None),
    ("POST", "/api/{user_id}/chat"): ("owned", {"message": "hello"}),
    ("GET", "/history"): ("own", None),
    ("GET", "/history/{turn_id}"): ("owned", None),
    ("GET", "/search"): ("own", None),
}
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


def of_document(app: Any) -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}


def test_every_route_is_classified(app: Any) -> None:
    assert of_document(app) - set(ROUTES) == set()
    assert of_document(app) == set(KINDS)


def test_every_classified_route_exists(app: Any) -> None:
    outside = {("GET", path) for path in ("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")}
    pages = {("GET", "start"), ("POST", "start"), ("GET", "callback"), ("GET", "client.json")}
    outside |= {(method, f"/api/v1/mcp/oauth/{page}") for method, page in pages}
    outside |= {(method, "/mcp") for method in ("GET", "POST", "DELETE")}
    outside |= {(method, f"/openai{path}") for method, path in of_document(app) if path.startswith("/v1/")}
    assert set(ROUTES) - of_document(app) <= outside


@pytest.mark.parametrize("route", KINDS, ids=" ".join)
def test_route_permissions_match_the_classification(route: tuple[str, str]) -> None:
    kind, _ = KINDS[route]
    access = ROUTES[route]
    least: dict[Kind, set[UserRole]] = {"admin": {"admin"}, "begins": {"user"}}
    reads = route[0] == "GET" or kind == "shared"
    assert access.role in least.get(kind, {"viewer"} if reads else {"user"})
    assert access.public is (kind == "public")


class Ada:
    """Someone who owns one of everything."""

    def __init__(self, ring: Keyring) -> None:
        self.ring = ring
        self.ids: dict[str, str] = {}

    async def own(self) -> None:
        ring = self.ring
        await ring.make("ada")
        turn = (await ring.chat("ada", f"Remember that {SECRET}", conversation_id="new")).body
        waiting = (await ring.chat("ada", f"Add a task to {SECRET}", approval="always")).body
        response = (await ring.post("ada", "/v1/responses", {"input": SECRET})).body
        self.ids = {
            "turn_id": turn["turn_id"],
            "conversation_id": turn["conversation_id"],
            "response_id": response["id"],
            "input_id": waiting["inputs"][0]["input_id"],
            "key_id": str(ring.rows["ada"].id),
            "user_id": "ada",
            "name": "calculator",
            "tool": "calculator",
            "model": "openai/gpt-oss-120b",
        }

    def url(self, path: str) -> str:
        where = path.replace("prompts/{name}", "prompts/plan_day").replace("servers/{name}", "servers/tools")
        return (where + QUERIES.get(path, "")).format(**self.ids)

    def body(self, body: Any) -> Any:
        return body and {name: value if value != "{input_id}" else self.ids["input_id"] for name, value in body.items()}

    async def call(self, route: tuple[str, str], headers: dict[str, str]) -> tuple[int, str]:
        method, path = route
        url = f"{self.ring.gateway.base_url}{self.url(path)}"
        body = self.body(KINDS[route][1])
        async with self.ring.gateway.session.request(method, url, json=body, headers=headers) as response:
            return response.status, await response.text()


@pytest.fixture
async def ada(locked: Keyring) -> Ada:
    owner = Ada(locked)
    await owner.own()
    return owner


async def test_unauthenticated_requests_are_rejected_on_all_routes(ada: Ada) -> None:
    for route, (kind, _) in KINDS.items():
        for headers in ({}, {"X-API-Key": "agw_00000000_wrong"}, {"Authorization": "Bearer a.b.c"}):
            status, text = await ada.call(route, headers)
            assert (status == 401) is (kind != "public"), (route, status)
            assert SECRET not in text


async def test_resources_of_another_user_are_not_found(ada: Ada, db: asyncpg.Connection) -> None:
    bob = await ada.ring.make("bob")
    before = await counts(db)
    for route, (kind, _) in KINDS.items():
        status, text = await ada.call(route, bob)
        if kind == "owned":
            assert status == 404, (route, status, text)
        elif kind == "admin":
            assert status == 403, (route, status, text)
        elif route[1].endswith("/sign-in"):
            assert status == 409  # nobody signs in to the tool server
        else:
            assert status in (200, 201), (route, status, text)
        assert SECRET not in text, route
        if kind != "owned":
            assert not [name for name in ("turn_id", "conversation_id", "key_id") if ada.ids[name] in text], route
    assert await counts(db) == before
    for path in ("/api/v1/turns/{turn_id}", "/api/v1/conversations/{conversation_id}", "/v1/responses/{response_id}"):
        assert (await ada.ring.get("ada", ada.url(path))).status == 200


async def test_paths_similar_to_a_route_are_rejected(locked: Keyring) -> None:
    """A router that is more lenient than the guard must not be asked: `$` in its patterns lets a line end pass."""
    viewer = await locked.make("ada", role="viewer", scopes=("tools",))
    names = dict.fromkeys(("turn_id", "conversation_id", "key_id", "response_id", "input_id"), str(uuid4()))
    names |= {"user_id": "ada", "name": "tools", "tool": "calculator", "model": "m"}
    for method, path in ROUTES:
        for tail in ("%0a", "%0A%0a", "%0d", "%00", "/", "%20", ";x"):
            if path.endswith("}") and tail not in ("%0a", "/"):
                continue  # a name may end in anything
            url = URL(f"{locked.gateway.base_url}{path.format(**names)}{tail}", encoded=True)
            async with locked.gateway.session.request(method, url, json={}, headers=viewer) as response:
                assert response.status in (403, 404, 405, 422), (method, url)
            async with locked.gateway.session.request(method, url, json={}) as response:
                assert response.status == 401, (method, url)


async def test_health_probes_accept_head_requests(locked: Keyring) -> None:
    await locked.make("ada")
    for path in ("/health", "/ready"):
        async with locked.gateway.session.head(f"{locked.gateway.base_url}{path}") as response:
            assert response.status == 200
            assert "x-ratelimit-limit" not in response.headers


async def counts(db: asyncpg.Connection) -> list[Any]:
    """How what is ada's stands."""
    tables = {"turns": "status", "conversations": "title", "api_keys": "revoked_at::text", "tasks": "title"}
    schemas = {"tasks": "tools.tasks"}
    owner = {"tasks": "user_id"}
    return [
        await db.fetch(
            f"SELECT {column} FROM {schemas.get(table, table)} WHERE {owner.get(table, 'owner')} = 'ada' ORDER BY 1"
        )
        for table, column in tables.items()
    ]


async def test_resources_of_another_user_cannot_be_continued(ada: Ada) -> None:
    bob = await ada.ring.make("bob")
    for path, body in (
        ("/api/v1/chat", CHAT | {"conversation_id": ada.ids["conversation_id"]}),
        ("/api/v1/chat", CHAT | {"parent_turn_id": ada.ids["turn_id"]}),
        ("/v1/responses", {"input": "go on", "previous_response_id": ada.ids["response_id"]}),
        ("/api/chat/stream", {"user_prompt": "go on", "conversation_id": ada.ids["conversation_id"]}),
    ):
        reply = await ada.ring.gateway.post(path, body, headers=bob)
        assert reply.status == 404, (path, reply.body)


async def test_idempotency_keys_are_scoped_to_their_owner(ada: Ada) -> None:
    bob = await ada.ring.make("bob")
    key = {"Idempotency-Key": "the same"}
    turns = [
        (await ada.ring.gateway.post("/api/v1/chat", CHAT, headers=headers | key)).body["turn_id"]
        for headers in (ada.ring.headers("ada"), bob, ada.ring.headers("ada"))
    ]
    assert turns[0] == turns[2] != turns[1]


async def test_viewer_cannot_change_own_resources(locked: Keyring, db: asyncpg.Connection) -> None:
    ada = Ada(locked)
    await ada.own()
    viewer = await locked.make("ada", role="viewer")
    before = await counts(db)
    for route in KINDS:
        status, text = await ada.call(route, viewer)
        if ROUTES[route].role == "viewer":
            assert status == 200, (route, status, text)
        else:
            assert status == 403, (route, status, text)
    assert await counts(db) == before
