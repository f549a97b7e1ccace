"""JSON web tokens: validation, roles, scopes, and keys from JWKS."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_encode
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from gateway.api.security.jwt_verifier import JwksCache, JwksUnavailable
from gateway.config import ConfigError, load_settings
from gateway.domain.errors import NotAuthenticated
from gateway.simulator import Simulator
from tests.stack import Gateway, ServeSharedGateway, serve_asgi, serve_gateway

SHARED_SECRET = "a-shared-secret-of-the-tests-that-is-long"
ISSUER, AUDIENCE = "https://issuer.example", "agent-gateway"


def make_claims(**changes: Any) -> dict[str, Any]:
    all_claims = {"sub": "ada", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 86_400} | changes
    return {name: value for name, value in all_claims.items() if value is not None}


def sign_with_secret(key: str = SHARED_SECRET, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(make_claims(**changes), key, algorithm=algorithm)


def change_signature(token: str) -> str:
    """Return the token with another first character of its signature."""
    # Not all bits of the last character count.
    signed, _, signature = token.rpartition(".")
    return f"{signed}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


def make_bearer_headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
async def gateway_with_secret(serve_shared_gateway: ServeSharedGateway) -> Gateway:
    return await serve_shared_gateway(jwt_secret=SecretStr(SHARED_SECRET), jwt_issuer=ISSUER, jwt_audience=AUDIENCE)


@pytest.mark.parametrize(
    ("make_token", "status"),
    [
        (lambda: sign_with_secret(), 200),
        (lambda: sign_with_secret(aud=["others", AUDIENCE]), 200),
        (lambda: sign_with_secret(exp=time.time() - 60), 401),
        (lambda: sign_with_secret(exp=None), 401),
        (lambda: sign_with_secret(nbf=time.time() + 3_600), 401),
        (lambda: sign_with_secret(aud="others"), 401),
        (lambda: sign_with_secret(aud=None), 401),
        (lambda: sign_with_secret(iss="https://evil.example"), 401),
        (lambda: sign_with_secret(iss=None), 401),
        (lambda: sign_with_secret(sub=None), 401),
        (lambda: sign_with_secret(sub=" "), 401),
        (lambda: sign_with_secret("another-secret-that-is-long-enough-too"), 401),
        (lambda: sign_with_secret(algorithm="HS512", key=SHARED_SECRET * 2), 401),
        (lambda: jwt.encode(make_claims(), None, algorithm="none"), 401),
        (lambda: change_signature(sign_with_secret()), 401),
        (lambda: "a.b.c", 401),
        (lambda: "..", 401),
        (lambda: sign_with_secret(sub=" ada "), 401),
        (lambda: sign_with_secret(sub="ada\n"), 401),
        (lambda: sign_with_secret(sub="a\nb"), 401),
        (lambda: sign_with_secret(sub="a\ud800"), 401),
        (lambda: sign_with_secret(more="x" * 20_000), 401),
        (lambda: sign_with_secret(kid=["first"]), 200),
        (lambda: jwt.encode(make_claims(), SHARED_SECRET, headers={"crit": ["x"]}), 401),
    ],
)
async def test_token_needs_a_valid_signature_lifetime_issuer_and_audience(
    gateway_with_secret: Gateway, make_token: Callable[[], str], status: int
) -> None:
    reply = await gateway_with_secret.get("/api/v1/models", headers=make_bearer_headers(make_token()))
    assert reply.status == status
    if status == 401:
        assert reply.body["error"]["code"] == "not_authenticated"


async def test_request_without_a_token_is_rejected(gateway_with_secret: Gateway) -> None:
    assert (await gateway_with_secret.get("/api/v1/models")).status == 401
    assert (await gateway_with_secret.get("/health")).status == 200


@pytest.mark.parametrize(
    ("claim", "role"),
    [
        (None, "user"),
        ("admin", "admin"),
        ("user", "user"),
        ("viewer", "viewer"),
        (["viewer", "admin"], "admin"),
        ("unknown", "viewer"),
    ],
)
async def test_role_claim_sets_the_role(gateway_with_secret: Gateway, claim: Any, role: str) -> None:
    headers = make_bearer_headers(sign_with_secret(role=claim))
    server = {"name": f"more_{uuid4().hex[:8]}", "url": "http://127.0.0.1:9/mcp"}
    assert (await gateway_with_secret.post("/api/v1/mcp/servers", server, headers=headers)).status == (
        201 if role == "admin" else 403
    )
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    assert (await gateway_with_secret.post("/api/v1/chat", chat, headers=headers)).status == (
        403 if role == "viewer" else 200
    )


async def test_token_subject_owns_its_turns(gateway_with_secret: Gateway) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    turn = (await gateway_with_secret.post("/api/v1/chat", chat, headers=make_bearer_headers(sign_with_secret()))).body[
        "turn_id"
    ]
    assert (
        await gateway_with_secret.get(f"/api/v1/turns/{turn}", headers=make_bearer_headers(sign_with_secret()))
    ).status == 200
    assert (
        await gateway_with_secret.get(f"/api/v1/turns/{turn}", headers=make_bearer_headers(sign_with_secret(sub="bob")))
    ).status == 404


async def test_scope_claim_restricts_the_routes(database_url: str, simulator: Simulator, tools_url: str) -> None:
    options = {"jwt_secret": SecretStr(SHARED_SECRET), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    async with serve_gateway(database_url, simulator, tools_url, **options, jwt_scope_claim="scope") as gateway:
        for scope, status in (("openid history", 200), ("openid", 403), (None, 403), (["history"], 200)):
            reply = await gateway.get("/api/v1/history", headers=make_bearer_headers(sign_with_secret(scope=scope)))
            assert reply.status == status, scope


# --- published keys


@dataclass
class JwksProvider:
    """An identity provider that publishes keys and counts requests."""

    keys: dict[str, Any] = field(default_factory=dict[str, Any])
    request_count: int = 0
    is_broken: bool = False
    is_hanging: bool = False
    hang_up: asyncio.Event = field(default_factory=asyncio.Event)
    document: Any = None

    def add_key(self, kid: str, kind: str = "RSA") -> None:
        self.keys[kid] = (
            rsa.generate_private_key(65537, 2048) if kind == "RSA" else ec.generate_private_key(ec.SECP256R1())
        )

    def sign_token(self, kid: str, algorithm: str = "RS256", **changes: Any) -> str:
        return jwt.encode(make_claims(**changes), self.keys[kid], algorithm=algorithm, headers={"kid": kid})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.request_count += 1
        if self.is_hanging:
            await self.hang_up.wait()
            return
        document = self.document if self.document is not None else {"keys": list(map(self._jwk, self.keys))}
        body = b"<html>out of order</html>" if self.is_broken else json.dumps(document).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        for piece in (body[:10], body[10:]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # let the client read the body in two parts
        await send({"type": "http.response.body", "body": b""})

    def export_public_pem(self, kid: str) -> str:
        """Return the public key in PEM."""
        public_key = self.keys[kid].public_key()
        return public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def _jwk(self, kid: str) -> dict[str, Any]:
        private_key = self.keys[kid]
        algorithm = (
            jwt.algorithms.RSAAlgorithm if isinstance(private_key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        )
        jwk = algorithm.to_jwk(private_key.public_key(), as_dict=True)
        return jwk | {
            "kid": kid,
            "use": "sig",
            "alg": "RS256" if algorithm is jwt.algorithms.RSAAlgorithm else "ES256",
        }


def sign_hmac(secret: str, kid: str) -> str:
    """Sign with HS256, also with a public key, which PyJWT refuses."""
    parts = ({"alg": "HS256", "typ": "JWT", "kid": kid}, make_claims())
    signing_input = b".".join(base64url_encode(json.dumps(part).encode()) for part in parts)
    return (signing_input + b"." + base64url_encode(hmac.digest(secret.encode(), signing_input, "sha256"))).decode()


@asynccontextmanager
async def serve_jwks(*kids: str) -> AsyncGenerator[tuple[JwksProvider, str]]:
    provider = JwksProvider()
    for kid in kids:
        provider.add_key(kid)
    async with serve_asgi(provider) as url:
        yield provider, f"{url}/jwks.json"


async def test_jwks_is_fetched_once_and_forged_tokens_are_rejected(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    async with serve_jwks("first", "second") as (provider, url):
        options = {"jwt_jwks_url": url, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
        async with serve_gateway(database_url, simulator, tools_url, **options) as gateway:
            for kid in ("first", "second") * 5:
                assert (
                    await gateway.get("/api/v1/models", headers=make_bearer_headers(provider.sign_token(kid)))
                ).status == 200
            for forged_token in (
                sign_with_secret(SHARED_SECRET),  # no key id
                # A symmetric algorithm with the id of an RSA key.
                jwt.encode(make_claims(), "x" * 40, algorithm="HS256", headers={"kid": "first"}),
                provider.sign_token("first", aud="others"),
                provider.sign_token("first", algorithm="RS512"),  # not a configured algorithm
                sign_hmac(provider.export_public_pem("first"), "first"),  # the public key as a shared secret
                jwt.encode(make_claims(), None, algorithm="none", headers={"kid": "first"}),
            ):
                assert (await gateway.get("/api/v1/models", headers=make_bearer_headers(forged_token))).status == 401
            assert provider.request_count == 1


async def test_rotated_key_is_fetched_and_fetches_for_unknown_key_ids_are_limited() -> None:
    async with serve_jwks("first") as (provider, url):
        keys = JwksCache(url, min_interval=0)
        assert (await keys.get_key("first")).key_id == "first"
        provider.add_key("second")
        assert (await keys.get_key("second")).key_id == "second"
        assert provider.request_count == 2
        limited_cache = JwksCache(url, min_interval=60)
        for kid in ("first", "ghost", "ghost", "spectre"):
            if kid == "first":
                await limited_cache.get_key(kid)
            else:
                with pytest.raises(NotAuthenticated):
                    await limited_cache.get_key(kid)
        assert provider.request_count == 3


async def test_cached_keys_stay_valid_while_the_jwks_endpoint_fails() -> None:
    async with serve_jwks("first") as (provider, url):
        keys = JwksCache(url, min_interval=0)
        provider.is_broken = True
        with pytest.raises(JwksUnavailable):
            await keys.get_key("first")
        provider.is_broken = False
        await keys.get_key("first")
        provider.is_broken = True
        with pytest.raises(NotAuthenticated):
            await keys.get_key("ghost")
        await keys.get_key("first")


async def test_hanging_jwks_endpoint_does_not_delay_known_keys() -> None:
    async with serve_jwks("first") as (provider, url):
        keys = JwksCache(url, min_interval=600, refresh_seconds=0.0, timeout_seconds=30.0, stale_wait_seconds=0.05)
        await keys.get_key("first")
        keys._attempted_at, provider.is_hanging = float("-inf"), True
        known_keys = await asyncio.gather(*(keys.get_key("first") for _ in range(50)))
        assert keys._fetch.is_running  # known keys are returned while the fetch hangs
        assert len({id(key) for key in known_keys}) == 1
        unknown_key_requests = asyncio.gather(*(keys.get_key(f"ghost {n}") for n in range(50)), return_exceptions=True)
        provider.hang_up.set()
        errors = await unknown_key_requests
        assert {type(error) for error in errors} == {NotAuthenticated}
        await keys.get_key("first")  # no second fetch within the interval
        assert not keys._fetch.is_running
        assert provider.request_count == 2


@pytest.mark.parametrize("document", [[], "keys", {"keys": 1}, {"keys": [1]}, {"keys": [{"kty": "oct"}]}, {}])
async def test_jwks_document_without_keys_is_unavailable(document: Any) -> None:
    async with serve_jwks("first") as (provider, url):
        provider.document = document
        with pytest.raises(JwksUnavailable):
            await JwksCache(url).get_key("first")


# --- settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"jwt_secret": SecretStr("short"), "jwt_issuer": "i", "jwt_audience": "a"}, "at least 32"),
        ({"jwt_secret": SecretStr(SHARED_SECRET)}, "JWT_ISSUER and JWT_AUDIENCE"),
        ({"jwt_jwks_url": "https://x/jwks", "jwt_issuer": "i"}, "JWT_ISSUER and JWT_AUDIENCE"),
        ({"jwt_jwks_url": "ftp://x", "jwt_issuer": "i", "jwt_audience": "a"}, "must start with http"),
        ({"jwt_jwks_url": "https://x", "jwt_secret": SecretStr(SHARED_SECRET)}, "one of them"),
        ({"jwt_jwks_url": "https://x", "jwt_issuer": "i", "jwt_audience": "a", "jwt_algorithms": "HS256"}, "ALG"),
        (
            {"jwt_secret": SecretStr(SHARED_SECRET), "jwt_issuer": "i", "jwt_audience": "a", "jwt_algorithms": "RS256"},
            "ALG",
        ),
        (
            {"jwt_secret": SecretStr(SHARED_SECRET), "jwt_issuer": "i", "jwt_audience": "a", "jwt_algorithms": "none"},
            "ALG",
        ),
    ],
)
def test_insecure_jwt_settings_are_rejected(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_settings(_env_file=None, **settings)
