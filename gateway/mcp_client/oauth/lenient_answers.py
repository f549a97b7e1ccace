"""Reads answers of authorization servers that differ from the standards.

The SDK's models refuse a whole document for one optional field.
"""

import math
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import parse_qsl

import httpx2
import msgspec
from mcp.shared.auth import OAuthClientInformationFull, OAuthMetadata, OAuthToken, ProtectedResourceMetadata
from pydantic import AnyHttpUrl, BaseModel, TypeAdapter, ValidationError

from gateway.common.logging import get_logger
from gateway.domain.messages import JsonObject

log = get_logger(__name__)

_ACCEPT = "application/json"
_SUCCESS = (200, 201)
_STRICT_FIELDS = {"token_type"}
"""Optional fields that must be valid."""
_HTTP_URL = TypeAdapter(AnyHttpUrl)


class LenientTransport(httpx2.AsyncBaseTransport):
    """Asks for JSON, and repairs successful answers for the SDK's models.

    Requests to `server_url` itself pass unchanged. `get_issuer` returns the issuer that the server names, once
    it is known: metadata whose issuer differs from it by a last slash are accepted with a warning, unless
    `strict_issuer`.
    """

    def __init__(
        self,
        inner: httpx2.AsyncBaseTransport,
        server_url: str,
        get_issuer: Callable[[], str | None] = lambda: None,
        *,
        strict_issuer: bool = False,
    ) -> None:
        self._inner = inner
        self._server_url = server_url
        self._get_issuer = get_issuer
        self._is_strict = strict_issuer
        self.stated_issuer: str | None = None
        """Issuer that the metadata state, if it differs by a slash."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url == self._server_url:
            return await self._inner.handle_async_request(request)
        if request.headers.get("Accept", "*/*") == "*/*":
            request.headers["Accept"] = _ACCEPT
        response = await self._inner.handle_async_request(request)
        document = _parse_document(await response.aread()) if response.status_code in _SUCCESS else None
        if document is None:
            return response
        document = self._repair(request, document)
        is_error = "error" in document and request.method == "POST"
        status = 400 if is_error else response.status_code
        return httpx2.Response(status, request=request, json=document)

    def _repair(self, request: httpx2.Request, document: JsonObject) -> JsonObject:
        if request.method == "GET" and "authorization_endpoint" in document:
            return self._accept_issuer(_keep_valid_fields(document, OAuthMetadata))
        if request.method == "GET":
            return _keep_valid_fields(document, ProtectedResourceMetadata)
        if request.headers.get("Content-Type", "").startswith("application/json"):
            return _keep_valid_fields(document, OAuthClientInformationFull)
        return repair_token(document)

    def _accept_issuer(self, metadata: JsonObject) -> JsonObject:
        issuer, expected = metadata.get("issuer"), self._get_issuer()
        if self._is_strict or expected is None or issuer == expected or not differs_by_slash(str(issuer), expected):
            return metadata
        log.warning("oauth_issuer_differs_by_slash", issuer=str(issuer)[:200], expected=expected[:200])
        self.stated_issuer = str(issuer)
        return {**metadata, "issuer": expected}

    async def aclose(self) -> None:
        await self._inner.aclose()


def differs_by_slash(issuer: str, other: str) -> bool:
    """Whether two issuers are equal but for a slash at the end."""
    try:
        urls = [str(_HTTP_URL.validate_python(url)) for url in (issuer, other)]
    except ValidationError:
        return False
    return urls[0].removesuffix("/") == urls[1].removesuffix("/")


def repair_token(document: JsonObject) -> JsonObject:
    """Repair the fields of a token response.

    The result has `error` only if the server gave no token.
    """
    if "access_token" in document:
        document = {name: value for name, value in document.items() if name != "error"}
    seconds, scope = document.get("expires_in"), document.get("scope")
    if seconds is not None:
        document = {**document, "expires_in": _parse_lifetime(seconds)}
    if isinstance(scope, list):
        document = {**document, "scope": " ".join(map(str, cast("list[object]", scope)))}
    elif isinstance(scope, str) and " " not in scope:
        document = {**document, "scope": scope.replace(",", " ")}
    return _keep_valid_fields(document, OAuthToken)


def _parse_lifetime(value: Any) -> int | None:
    """Return the lifetime in whole seconds.

    None: the token does not tell. Some servers write -1 or 0 for one that never expires.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(seconds) if math.isfinite(seconds) and seconds > 0 else None


def _parse_document(content: bytes) -> JsonObject | None:
    """Return the object of a JSON or form-encoded body."""
    content = content.removeprefix(b"\xef\xbb\xbf").strip()
    try:
        document = msgspec.json.decode(content)
    except (ValueError, RecursionError):
        fields = dict(parse_qsl(content.decode("utf-8", "replace"), max_num_fields=100)) if b"=" in content else {}
        return cast("JsonObject", fields) if {"access_token", "error"} & fields.keys() else None
    return cast("JsonObject", document) if isinstance(document, dict) else None


def _keep_valid_fields(document: JsonObject, model: type[BaseModel]) -> JsonObject:
    """Leave out empty fields, and optional ones that the model refuses."""
    document = {name: value for name, value in document.items() if value not in (None, "", [])}
    try:
        model.model_validate(document)
    except ValidationError as error:
        invalid = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]} - _STRICT_FIELDS
        ignored = [name for name in invalid if name in document and not model.model_fields[name].is_required()]
        if ignored:
            log.warning("oauth_fields_ignored", document=model.__name__, fields=sorted(ignored))
        return {name: value for name, value in document.items() if name not in ignored}
    return document
