"""Makes an OAuth server bind its tokens to keys (DPoP, RFC 9449)."""

import base64
import hashlib
import json
import secrets
import time
from typing import Any, cast

import jwt
from jwt.algorithms import ECAlgorithm
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METADATA = "/.well-known/oauth-authorization-server"


class DpopServer:
    """An ASGI application around that of an OAuth server.

    It wants a nonce in each proof, which is another one after `nonce_uses` requests (0: no nonce is ever right).
    `server_knows`: whether the MCP
    server demands bound tokens, besides the authorization server that knows them.
    """

    def __init__(self, app: ASGIApp, origin: str, *, nonce_uses: int = 1_000, server_knows: bool = True) -> None:
        self._app = app
        self._origin = origin
        self._nonce_uses = nonce_uses
        self._server_knows = server_knows
        self._nonce, self._uses = secrets.token_urlsafe(8), 0
        self._proof_ids: set[str] = set()
        self.bound: dict[str, str] = {}
        """Thumbprints of keys by token."""
        self.token_requests = 0
        self.schemes: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == METADATA:
            await self._rewrite(scope, receive, send, {"dpop_signing_alg_values_supported": ["ES256"]})
        elif scope["path"] == "/token" and "dpop" in Headers(scope=scope):
            await self._issue_bound(scope, receive, send)
        elif scope["path"] == "/mcp" and self._server_knows:
            await self._protect(scope, receive, send)
        else:
            if (authorization := Headers(scope=scope).get("authorization")) is not None:
                self.schemes.add(authorization.partition(" ")[0])
            await self._app(scope, receive, send)

    async def _protect(self, scope: Scope, receive: Receive, send: Send) -> None:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        self.schemes.add(scheme)
        if not token:
            await self._app(scope, receive, self._demand_proof(send))
            return
        error = "invalid_token" if scheme != "DPoP" else self._check_proof(scope, token)
        if error:
            await self._refuse(send, 401, error)
            return
        MutableHeaders(scope=scope)["authorization"] = f"Bearer {token}"
        await self._app(scope, receive, send)

    async def _issue_bound(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.token_requests += 1
        body = await _read_body(receive)
        if error := self._check_proof(scope, None):
            await self._refuse(send, 400, error)
            return
        thumbprint = _get_thumbprint(Headers(scope=scope)["dpop"])
        for token, key in self.bound.items():
            if f"refresh_token={token}".encode() in body and key != thumbprint:
                await self._refuse(send, 400, "invalid_dpop_proof")
                return

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._rewrite(scope, replay, send, {"token_type": "DPoP"}, thumbprint)

    def _check_proof(self, scope: Scope, token: str | None) -> str:
        """Check a request's proof; return the error."""
        proof = Headers(scope=scope).get("dpop", "")
        try:
            key: Any = ECAlgorithm.from_jwk(jwt.get_unverified_header(proof)["jwk"])
            claims = jwt.decode(proof, key, algorithms=["ES256"])
        except (jwt.PyJWTError, KeyError):
            return "invalid_dpop_proof"
        is_valid = (
            jwt.get_unverified_header(proof)["typ"] == "dpop+jwt"
            and (claims["htm"], claims["htu"]) == (scope["method"], self._origin + scope["path"])
            and abs(time.time() - claims["iat"]) < 60
            and claims["jti"] not in self._proof_ids
        )
        if token is not None:
            digest = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
            is_valid = is_valid and claims["ath"] == digest and self.bound.get(token) == _get_thumbprint(proof)
        self._proof_ids.add(claims["jti"])
        if not is_valid:
            return "invalid_dpop_proof"
        if claims.get("nonce") != self._nonce:
            return "use_dpop_nonce"
        self._uses += 1
        if self._uses >= self._nonce_uses:
            self._nonce, self._uses = secrets.token_urlsafe(8), 0
        return ""

    async def _refuse(self, send: Send, status: int, error: str) -> None:
        nonce = self._nonce if self._nonce_uses else secrets.token_urlsafe(8)
        names = {"content-type": "application/json", "dpop-nonce": nonce}
        names |= {"www-authenticate": f'DPoP error="{error}"'} if status == 401 else {}
        headers = [(name.encode(), value.encode()) for name, value in names.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})

    def _demand_proof(self, send: Send) -> Send:
        async def send_with_scheme(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers["www-authenticate"] = headers["www-authenticate"].replace("Bearer", "DPoP")
            await send(message)

        return send_with_scheme

    async def _rewrite(
        self, scope: Scope, receive: Receive, send: Send, fields: dict[str, Any], thumbprint: str = ""
    ) -> None:
        """Add fields to the answer; bind its tokens to a key."""
        start: Message = {}
        body = bytearray()

        async def collect(message: Message) -> None:
            start.update(message if message["type"] == "http.response.start" else {})
            body.extend(message.get("body", b""))

        await self._app(scope, receive, collect)
        document = cast("dict[str, Any]", json.loads(bytes(body)))
        if start["status"] == 200:
            document |= fields
            self.bound |= {document[name]: thumbprint for name in ("access_token", "refresh_token") if name in document}
        content = json.dumps(document).encode()
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(content))
        await send(cast("Message", start))
        await send({"type": "http.response.body", "body": content})


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _get_thumbprint(proof: str) -> str:
    jwk = jwt.get_unverified_header(proof)["jwk"]
    return f"{jwk['x']}.{jwk['y']}"
