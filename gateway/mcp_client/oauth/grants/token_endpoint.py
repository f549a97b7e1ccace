"""Token requests to an authorization server that an administrator names.

The transport's limits of addresses, time and size apply. Errors of the authorization server become `TokenRefused` or
`httpx2.ConnectError` here, and nowhere else.
"""

import re
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import httpx2
import msgspec
from mcp.client.auth.utils import build_oauth_authorization_server_metadata_discovery_urls
from mcp.shared.auth import OAuthClientInformationFull

from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject
from gateway.mcp_client.oauth.client_authentication import add_client_authentication
from gateway.mcp_client.oauth.errors import InsecureUrl, TokenRefused
from gateway.mcp_client.oauth.https_only import REQUEST_TIMEOUT_SECONDS, HttpsOnlyTransport
from gateway.mcp_client.oauth.lenient_answers import LenientTransport, differs_by_slash
from gateway.ports.servers import IssuerClient, ServerConfig

log = get_logger(__name__)

_TOTAL_SECONDS = 20.0
_METADATA_SECONDS = 3_600.0
_MAX_ASSERTION_BYTES = 64 * 1024
_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")
_OAUTH_ERROR = re.compile(r"[a-z0-9_]{1,64}")
_CLIENT_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class IssuedToken(msgspec.Struct, frozen=True):
    """The answer to a token request.

    `expires_in` is in seconds; None: the server does not tell.
    """

    access_token: str
    token_type: str = "Bearer"  # noqa: S105 - a kind, no secret
    expires_in: float | None = None
    issued_token_type: str | None = None


class _Metadata(msgspec.Struct, frozen=True):
    """The part of an authorization server's metadata that is used (RFC 8414)."""

    issuer: str
    token_endpoint: str
    token_endpoint_auth_methods_supported: list[str] | None = None


class TokenEndpoint:
    """The token endpoint of one issuer."""

    def __init__(self, server: ServerConfig, client: IssuerClient) -> None:
        self._server = server
        self._client = client
        self._metadata: _Metadata | None = None
        self._read_at = 0.0

    @property
    def issuer(self) -> str:
        """The issuer, which assertions name as their audience."""
        return self._client.issuer or self._client.token_endpoint or ""

    async def request_token(self, form_fields: JsonObject) -> IssuedToken:
        """Request a token.

        Raises:
            TokenRefused: the authorization server refuses the grant.
            httpx2.ConnectError: it does not work now, or its answer cannot be used.
        """
        try:
            async with Deadline.after(_TOTAL_SECONDS).limit():
                response = await self._send(form_fields)
        except (httpx2.HTTPError, InsecureUrl, ValueError, TimeoutError, *JSON_DECODE_ERRORS) as error:
            raise self._fail(error) from error
        if response.status_code in (400, 401, 403):
            raise TokenRefused(_parse_oauth_error(response))
        try:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            token = msgspec.json.decode(response.content, type=IssuedToken)
        except (ValueError, *JSON_DECODE_ERRORS) as error:
            raise self._fail(error) from error
        if not _TOKEN.fullmatch(token.access_token):
            raise self._fail(ValueError("no token"))
        return token

    def _fail(self, error: Exception) -> httpx2.ConnectError:
        log.warning("token_not_issued", server=self._server.name, error=type(error).__name__)
        return httpx2.ConnectError("the authorization server does not give a token now")

    async def _send(self, form_fields: JsonObject) -> httpx2.Response:
        transport = LenientTransport(HttpsOnlyTransport(self._server), self._server.url)
        async with httpx2.AsyncClient(timeout=REQUEST_TIMEOUT_SECONDS, transport=transport) as http:
            metadata = await self._find_metadata(http)
            fields = dict(form_fields)
            headers = await self._authenticate(fields, metadata.token_endpoint_auth_methods_supported)
            return await http.post(metadata.token_endpoint, data=fields, headers=headers)

    async def _find_metadata(self, http: httpx2.AsyncClient) -> _Metadata:
        """Return the metadata, which are read again every hour.

        Raises:
            ValueError: the issuer has none, or those of another one.
        """
        client = self._client
        if client.token_endpoint is not None:
            return _Metadata(self.issuer, client.token_endpoint)
        if self._metadata is not None and time.monotonic() - self._read_at < _METADATA_SECONDS:
            return self._metadata
        issuer = client.issuer or ""
        for url in build_oauth_authorization_server_metadata_discovery_urls(issuer, issuer):
            response = await http.get(url)
            if response.status_code != 200:
                continue
            metadata = msgspec.json.decode(response.content, type=_Metadata)
            if metadata.issuer != issuer and not differs_by_slash(metadata.issuer, issuer):
                raise ValueError("the metadata are those of another issuer")
            self._metadata, self._read_at = metadata, time.monotonic()
            return metadata
        raise ValueError("the issuer has no metadata")

    async def _authenticate(self, fields: JsonObject, offered: list[str] | None) -> dict[str, str]:
        """Add the client's credentials to the form, or return them as headers."""
        client = self._client
        if client.private_key is not None:
            fields |= {
                "client_id": client.client_id,
                "client_assertion": await make_assertion_signer(client)(self.issuer),
                "client_assertion_type": _CLIENT_ASSERTION_TYPE,
            }
            return {}
        secret = client.client_secret.get_secret_value() if client.client_secret is not None else None
        prefers_post = offered is not None and "client_secret_basic" not in offered and "client_secret_post" in offered
        method = client.token_endpoint_auth_method or ("client_secret_post" if prefers_post else "client_secret_basic")
        registered = OAuthClientInformationFull(
            redirect_uris=None,
            client_id=client.client_id,
            client_secret=secret,
            token_endpoint_auth_method=method if secret else "none",
        )
        return add_client_authentication(registered, fields)


def make_assertion_signer(client: IssuerClient) -> Callable[[str], Awaitable[str]]:
    """Return a function that signs an assertion for an audience."""
    from mcp.client.auth.extensions.client_credentials import SignedJWTParameters  # imported here, as it imports PyJWT

    assert client.private_key is not None
    parameters = SignedJWTParameters(
        issuer=client.client_id,
        subject=client.client_id,
        signing_key=client.private_key.get_secret_value(),
        signing_algorithm=client.signing_algorithm,
    )
    return parameters.create_assertion_provider()


def read_assertion(path: str) -> str:
    """Read the assertion of a workload.

    Another program renews its file.

    Raises:
        ValueError: the file cannot be read, or has no token.
    """
    file = Path(path)
    try:
        state = file.stat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > _MAX_ASSERTION_BYTES:
            raise ValueError("the assertion file is no file, or too large")
        text = file.read_text("ascii").strip()
    except OSError as error:
        raise ValueError(f"the assertion file cannot be read: {error.strerror}") from None
    if not _TOKEN.fullmatch(text):
        raise ValueError("the assertion file has no token")
    return text


def _parse_oauth_error(response: httpx2.Response) -> str:
    """Return the error's code, which the administrator looks up."""
    try:
        document: object = response.json()
    except (ValueError, RecursionError):
        return "invalid_request"
    code = cast("JsonObject", document).get("error") if isinstance(document, dict) else None
    return code if isinstance(code, str) and _OAUTH_ERROR.fullmatch(code) else "invalid_request"
