"""Proofs of the key of a token (DPoP, RFC 9449).

A token that is bound to a key is of no use to whoever steals it. One key serves one sign-in: one owner at one server.
"""

import base64
import hashlib
import re
import time
from functools import cached_property
from typing import Any, cast
from uuid import uuid4

import httpx2
import msgspec

from gateway.common.concurrency import LruDict
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject

_ALGORITHM = "ES256"
_SCHEME = re.compile(r"(?:^|,)\s*dpop(?:\s|$)", re.IGNORECASE)
_NONCE = re.compile(r"[\x21-\x7e]{1,1000}")
_NONCE_WANTED = "use_dpop_nonce"
_FORM = "application/x-www-form-urlencoded"
_MAX_ORIGINS = 4


class DpopKey:
    """A key pair, and the nonces that servers want in its proofs."""

    def __init__(self, pem: str | None = None) -> None:
        self._pem = pem
        self._nonces: LruDict[str, str] = LruDict(_MAX_ORIGINS)

    @cached_property
    def pem(self) -> str:
        """The private key, to be stored encrypted."""
        if self._pem is not None:
            return self._pem
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = ec.generate_private_key(ec.SECP256R1())
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    @cached_property
    def _signer(self) -> tuple[Any, JsonObject]:
        """The private key, and the header of its proofs."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
        from jwt.algorithms import ECAlgorithm

        private_key: Any = load_pem_private_key(self.pem.encode(), None)
        return private_key, {"typ": "dpop+jwt", "jwk": ECAlgorithm.to_jwk(private_key.public_key(), as_dict=True)}

    async def send(
        self, inner: httpx2.AsyncBaseTransport, request: httpx2.Request, token: str | None = None
    ) -> httpx2.Response:
        """Send a request with a proof.

        Send it once more if the server wants a nonce in the proof.
        """
        response = await self._send_once(inner, request, token)
        if await self._learn_nonce(request, response) and await _wants_nonce(response, token):
            await response.aclose()
            response = await self._send_once(inner, request, token)
            await self._learn_nonce(request, response)
        return response

    async def _send_once(
        self, inner: httpx2.AsyncBaseTransport, request: httpx2.Request, token: str | None
    ) -> httpx2.Response:
        request.headers["DPoP"] = self._sign(request, token)
        if token is not None:
            request.headers["Authorization"] = f"DPoP {token}"
        return await inner.handle_async_request(request)

    def _sign(self, request: httpx2.Request, token: str | None) -> str:
        import jwt  # imported here, as few servers need it

        claims: JsonObject = {
            "jti": str(uuid4()),
            "htm": request.method,
            "htu": str(request.url.copy_with(query=None, fragment=None)),
            "iat": int(time.time()),
        }
        if (nonce := self._nonces.get(_get_origin(request))) is not None:
            claims["nonce"] = nonce
        if token is not None:
            digest = hashlib.sha256(token.encode()).digest()
            claims["ath"] = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        private_key, header = self._signer
        return jwt.encode(claims, private_key, _ALGORITHM, headers=header)

    async def _learn_nonce(self, request: httpx2.Request, response: httpx2.Response) -> bool:
        """Remember the nonce of an answer; whether it is a new one."""
        nonce, origin = response.headers.get("DPoP-Nonce", ""), _get_origin(request)
        if not _NONCE.fullmatch(nonce) or nonce == self._nonces.get(origin):
            return False
        self._nonces[origin] = nonce
        return True


class DpopTransport(httpx2.AsyncBaseTransport):
    """Adds proofs to the requests of a sign-in or a refresh.

    It does so once both the server and its authorization server say that they know DPoP; `key` is for a refresh of a
    bound token. `is_bound`: whether the last token is bound to the key. The SDK sees it as a bearer token.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport, server_url: str, key: DpopKey | None = None) -> None:
        self._inner = inner
        self._server_url = server_url
        self._server_knows = self._issuer_knows = key is not None
        self.key = key or DpopKey()
        self.is_bound = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url == self._server_url:
            return await self._ask_server(request)
        if request.method == "GET":
            return await self._read_metadata(request)
        if not request.headers.get("Content-Type", "").startswith(_FORM):
            return await self._inner.handle_async_request(request)
        if not (self._server_knows and self._issuer_knows):
            return await self._inner.handle_async_request(request)
        return await self._accept_bound(request, await self.key.send(self._inner, request))

    async def _ask_server(self, request: httpx2.Request) -> httpx2.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if self.is_bound and scheme == "Bearer":
            return await self.key.send(self._inner, request, token)
        response = await self._inner.handle_async_request(request)
        self._server_knows = self._server_knows or bool(_SCHEME.search(response.headers.get("WWW-Authenticate", "")))
        return response

    async def _read_metadata(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        document = _parse_object(await response.aread()) if response.status_code == 200 else {}
        knows = _ALGORITHM in _list_texts(document.get("dpop_signing_alg_values_supported"))
        if "token_endpoint" in document:
            self._issuer_knows = knows
        elif knows or document.get("dpop_bound_access_tokens_required") is True:
            self._server_knows = True
        return response

    async def _accept_bound(self, request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        document = _parse_object(await response.aread())
        self.is_bound = str(document.get("token_type", "")).lower() == "dpop"
        if not self.is_bound:
            return response
        return httpx2.Response(response.status_code, request=request, json={**document, "token_type": "Bearer"})

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _wants_nonce(response: httpx2.Response, token: str | None) -> bool:
    """Whether a refused request is to be sent again with the nonce.

    A server says so in a header, and a token endpoint in the body.
    """
    if token is not None:
        return response.status_code == 401 and _NONCE_WANTED in response.headers.get("WWW-Authenticate", "")
    if response.status_code not in (400, 401):
        return False
    return _parse_object(await response.aread()).get("error") == _NONCE_WANTED


def _parse_object(content: bytes) -> JsonObject:
    try:
        document: object = msgspec.json.decode(content)
    except JSON_DECODE_ERRORS:
        return {}
    return cast("JsonObject", document) if isinstance(document, dict) else {}


def _list_texts(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _get_origin(request: httpx2.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode()}"
