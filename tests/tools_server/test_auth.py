import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.domain.messages import Principal
from gateway.mcp_client.caller_identity import acting_for
from tests.stack import SECRET
from tests.tools_server.conftest import ERAS, connect, serve_tools, serve_web, text_of

CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {
        "name": "calculator",
        "arguments": {"expression": "1+1"},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    },
}
HEADERS = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "calculator",
}


def token(secret: str = SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": "agent-gateway", "aud": "tools-server", "sub": "ann", "iat": now, "exp": now + 60} | changes
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, secret, algorithm)


async def post(address: str, authorization: str | None = None, **headers: str) -> httpx2.Response:
    credential = {"Authorization": authorization} if authorization is not None else {}
    async with httpx2.AsyncClient(timeout=30) as http:
        return await http.post(f"{address}/mcp", json=CALL, headers={**HEADERS, **credential, **headers})


@pytest.fixture(scope="module")
async def guarded() -> AsyncGenerator[str]:
    """The address of a tool server with TOOLS_SERVER_SECRET."""
    async with serve_tools() as address:
        yield address


async def test_good_token_is_let_in() -> None:
    async with serve_tools() as address:
        assert (await post(address, f"Bearer {token()}")).status_code == 200
        assert (await post(address, f"bearer {token(exp=int(time.time()) - 2)}")).status_code == 200  # clocks differ


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {token(secret='another-secret-that-is-long-enough-too')}",
        f"Bearer {token(aud='another-server')}",
        f"Bearer {token(aud='http://127.0.0.1/mcp')}",  # another server of this machine, at port 80
        f"Bearer {token(aud='https://localhost/mcp')}",
        f"Bearer {token(aud='http://127.0.0.1:9/mcp')}",
        f"Bearer {token(iss='somebody')}",
        f"Bearer {token(exp=int(time.time()) - 60)}",
        f"Bearer {token(exp=None)}",
        f"Bearer {token(iat=None)}",
        f"Bearer {token(iat=int(time.time()) + 3600)}",
        f"Bearer {token(iss=None)}",
        f"Bearer {token(aud=None)}",
        f"Bearer {token(sub=None)}",
        f"Bearer {token(sub='')}",
        f"Bearer {token(sub=' ')}",
        f"Bearer {token(sub='a' * 257)}",
        f"Bearer {token(sub='a' + chr(0))}",
        f"Bearer {token(SECRET * 2, 'HS512')}",
        f"Bearer {jwt.encode({'sub': 'ann', 'aud': 'tools-server', 'exp': 9999999999}, '', 'none')}",
        "Bearer nonsense",
        "Bearer",
        "Basic YW5uOnB3",
        SECRET,
    ],
)
async def test_bad_token_is_refused(guarded: str, authorization: str) -> None:
    response = await post(guarded, authorization)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert response.json()["error"]["code"] == "not_authenticated"
    assert response.json()["error"]["message"].startswith("Refused: ")


async def test_bad_token_is_refused_also_where_none_is_needed() -> None:
    async with serve_tools(tools_server_host="127.0.0.1", tools_server_secret=None) as address:
        assert (await post(address)).status_code == 200
        assert (await post(address, "Bearer nonsense")).status_code == 401


async def test_token_that_cannot_be_verified_is_refused() -> None:
    async with serve_tools(tools_server_secret=None) as address:
        response = await post(address, f"Bearer {token()}")
    assert response.status_code == 401
    assert "TOOLS_SERVER_SECRET" in response.json()["error"]["message"]


async def test_beyond_loopback_a_token_is_required_except_for_health() -> None:
    async with serve_tools(tools_server_host="0.0.0.0") as address:
        missing = await post(address)
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        assert (await post(address, f"Bearer {token()}")).status_code == 200
        async with httpx2.AsyncClient(timeout=30) as http:
            assert (await http.get(f"{address}/health")).status_code == 200


async def test_browser_on_another_site_is_no_loopback_caller() -> None:
    async with serve_tools(tools_server_secret=None) as address:
        assert (await post(address, Host="evil.example:8001")).status_code == 421
        assert (await post(address, Origin="https://evil.example")).status_code == 403


async def test_blanks_around_a_header_value_mean_nothing(guarded: str) -> None:
    """Sent as raw bytes, because HTTP clients remove such blanks."""
    body = json.dumps(CALL).encode()
    lines = {**HEADERS, "Mcp-Name": "\t calculator \t", "Content-Type": "application/json", "Connection": "close"}
    lines["Authorization"] = f"\t Bearer {token()} \t"
    host, port = guarded.removeprefix("http://").split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST /mcp HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body
        )
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200")


async def test_hosts_and_origins_can_be_allowed() -> None:
    async with serve_tools(
        tools_server_allowed_hosts="tools:8001, tools.internal",
        tools_server_allowed_origins="https://app.example",
    ) as address:
        for host in ("tools:8001", "tools.internal", "tools.internal:8001"):
            assert (await post(address, f"Bearer {token()}", Host=host)).status_code == 200
        assert (await post(address, f"Bearer {token()}", Host="tools:9")).status_code == 421
        assert (await post(address, f"Bearer {token()}", Origin="https://app.example")).status_code == 200


@pytest.mark.parametrize("era", ERAS)
async def test_the_gateways_own_tokens_are_understood(tools: str, era: str) -> None:
    async with connect(tools, era) as client:
        with acting_for(Principal("ann")):
            added = await client.call_tool("add_task", {"title": "buy milk"})
    assert text_of(added) == "Added task #1: buy milk"


@pytest.fixture
async def authority() -> AsyncGenerator[tuple[str, Any]]:
    """The URL of an authorization server's public keys, and its private key."""
    private = ec.generate_private_key(ec.SECP256R1())
    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key())) | {"kid": "one", "alg": "ES256"}

    async def keys(_request: web.Request) -> web.Response:
        return web.json_response({"keys": [key]})

    async with serve_web(keys) as url:
        yield f"{url}/keys", private


def issued(private: Any, **changes: Any) -> str:
    now = int(time.time())
    claims = {"iss": "https://login.example", "aud": "https://tools.example/mcp", "sub": "ann", "iat": now}
    return jwt.encode({**claims, "exp": now + 60, **changes}, private, "ES256", headers={"kid": "one"})


async def test_token_of_the_configured_authorization_server_names_the_user(authority: tuple[str, Any]) -> None:
    keys, private = authority
    async with serve_tools(
        tools_server_host="0.0.0.0",
        tools_server_oauth_issuer="https://login.example",
        tools_server_oauth_jwks_url=keys,
        tools_server_public_url="https://tools.example",
    ) as address:
        assert (await post(address, f"Bearer {issued(private)}")).status_code == 200
        assert (await post(address, f"Bearer {token()}")).status_code == 200  # the gateway's own still counts
        other = ec.generate_private_key(ec.SECP256R1())
        now = int(time.time())
        for bad in (
            issued(private, aud="https://other.example/mcp"),
            issued(private, iss="https://evil.example"),
            issued(private, exp=now - 60),
            issued(other),
        ):
            assert (await post(address, f"Bearer {bad}")).status_code == 401
        refused = await post(address)
        metadata = "https://tools.example/.well-known/oauth-protected-resource/mcp"
        assert refused.headers["www-authenticate"] == f'Bearer resource_metadata="{metadata}"'
        async with httpx2.AsyncClient(timeout=30) as http:
            metadata = (await http.get(f"{address}/.well-known/oauth-protected-resource/mcp")).json()
    assert metadata["resource"] == "https://tools.example/mcp"
    assert metadata["authorization_servers"] == ["https://login.example"]


async def test_without_the_authorization_servers_keys_its_tokens_are_refused() -> None:
    async with serve_tools(
        tools_server_oauth_issuer="https://login.example", tools_server_oauth_jwks_url="http://127.0.0.1:9/keys"
    ) as address:
        response = await post(address, f"Bearer {issued(ec.generate_private_key(ec.SECP256R1()))}")
    assert response.status_code == 401
    assert "cannot be fetched now" in response.json()["error"]["message"]


async def call_without_token(address: str, **headers: str) -> list[int]:
    """Return the status of a call at each path that has tools."""
    body = {"name": "calculator", "arguments": {"expression": "1+1"}}
    async with httpx2.AsyncClient(timeout=30, headers=headers) as http:
        return [
            (await post(address, **headers)).status_code,
            (await http.get(f"{address}/tools")).status_code,
            (await http.post(f"{address}/tools/call", json=body)).status_code,
        ]


@pytest.mark.parametrize(
    "issuer",
    [
        {"tools_server_oauth_issuer": "https://login.example"},
        {"tools_server_oauth_jwks_url": "https://login.example/keys"},
        {"tools_server_gateway_jwks_url": "https://gateway.example/.well-known/jwks.json"},
        {"tools_server_gateway_jwks_file": "/nowhere/keys.json"},
        {"tools_server_public_url": "https://tools.example"},
        {"tools_server_secret": SECRET},
    ],
)
async def test_loopback_caller_needs_a_token_where_tokens_are_configured(issuer: dict[str, str]) -> None:
    """A proxy may pass on requests of strangers without any header."""
    async with serve_tools(**{"tools_server_secret": None, **issuer}) as address:
        assert await call_without_token(address) == [401, 401, 401]
        async with httpx2.AsyncClient(timeout=30) as http:
            assert (await http.get(f"{address}/health")).status_code == 200


PROXY_HEADERS = (
    *("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "CF-Connecting-IP", "True-Client-IP", "X-Client-IP"),
    *("X-Forwarded-Port", "X-Envoy-External-Address", "Fly-Client-IP", "Tailscale-User-Login"),
)


async def test_caller_behind_a_proxy_is_not_local() -> None:
    async with serve_tools(tools_server_secret=None) as address:
        assert await call_without_token(address) == [200, 200, 200]
        for header in PROXY_HEADERS:
            assert await call_without_token(address, **{header: "203.0.113.9"}) == [401, 401, 401], header


async def test_caller_under_a_name_of_others_is_not_local() -> None:
    """A proxy without any header of its own passes the name on."""
    async with serve_tools(tools_server_secret=None, tools_server_allowed_hosts="tools.example") as address:
        assert await call_without_token(address) == [200, 200, 200]
        assert await call_without_token(address, Host="tools.example") == [401, 401, 401]


@pytest.mark.faults
async def test_slow_keys_of_an_issuer_block_nobody_else() -> None:
    """The keys arrive byte by byte, and never end."""
    was_asked = asyncio.Event()

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        was_asked.set()
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    async with serve_web(drip) as keys, serve_tools(tools_server_gateway_jwks_url=f"{keys}/keys") as address:
        private = ec.generate_private_key(ec.SECP256R1())
        bearer = f"Bearer {issued(private, iss='agent-gateway', aud='tools-server')}"
        waiting = [asyncio.create_task(post(address, bearer)) for _ in range(40)]
        async with asyncio.timeout(60):
            await was_asked.wait()
            assert (await post(address, f"Bearer {token()}")).status_code == 200
            assert not any(call.done() for call in waiting)
            responses = await asyncio.gather(*waiting)
    assert {response.status_code for response in responses} == {401}
    assert "cannot be fetched now" in responses[0].json()["error"]["message"]
