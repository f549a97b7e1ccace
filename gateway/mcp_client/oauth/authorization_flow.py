"""A run of the SDK's authorization code flow."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urljoin, urlsplit, urlunsplit

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError, OAuthRegistrationError, OAuthTokenError
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl, ValidationError

from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text
from gateway.domain.grants import AuthorizationRequest, Grant
from gateway.domain.messages import JsonObject
from gateway.mcp_client.oauth.client_authentication import choose_auth_method
from gateway.mcp_client.oauth.dpop import DpopTransport
from gateway.mcp_client.oauth.errors import AuthorizationRefused, InsecureUrl, UnsafeAuthorizationServer
from gateway.mcp_client.oauth.https_only import (
    INSUFFICIENT_SCOPE,
    REQUEST_TIMEOUT_SECONDS,
    HttpsOnlyTransport,
    is_permitted_url,
)
from gateway.mcp_client.oauth.lenient_answers import LenientTransport
from gateway.mcp_client.oauth.refresh import INVALID_CLIENT_ERRORS, get_expiry
from gateway.ports.grants import GrantStore
from gateway.ports.servers import ServerConfig

log = get_logger(__name__)

_LEGACY_VERSION = "2025-11-25"
_PKCE_METHOD = "S256"
PROBE: JsonObject = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": _LEGACY_VERSION,
        "capabilities": {},
        "clientInfo": {"name": "agent-gateway", "version": "1"},
    },
}
PROBE_HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": _LEGACY_VERSION}


def make_client_metadata(callback_url: str, scope: str | None = None) -> OAuthClientMetadata:
    """The gateway as an OAuth client."""
    return OAuthClientMetadata(
        redirect_uris=[AnyUrl(callback_url)],
        client_name="agent-gateway",
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        scope=scope,
    )


class AuthorizationFlow:
    """A run of the authorization code flow.

    It is also the SDK's `TokenStorage`.

    `page` is the authorization server's page to visit, once it is known. `wait_for_callback(ticket, state)` waits for
    the answer that the authorization server sends the user back with. `document_url` is the address of the gateway's
    client id metadata, if authorization servers can read it.
    """

    def __init__(
        self,
        grants: GrantStore,
        config: ServerConfig,
        request: AuthorizationRequest,
        ticket: str,
        *,
        callback_url: str,
        document_url: str | None,
        strict_issuer: bool,
        wait_for_callback: Callable[[str, str], Awaitable[JsonObject]],
    ) -> None:
        self.request = request
        self.ticket = ticket
        self.page: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._grants = grants
        self._config = config
        self._grant_key = (request.server, request.owner, request.url)
        self._strict_issuer = strict_issuer
        self._wait_for_callback = wait_for_callback
        self._state = ""
        self._transport: LenientTransport | None = None
        self._proofs: DpopTransport | None = None
        metadata = make_client_metadata(callback_url, config.oauth.scope if config.oauth else None)
        self._provider = OAuthClientProvider(
            config.url, metadata, self, self._show_page, self._receive_answer, document_url
        )

    async def run_to_grant(self) -> str:
        """Run until a grant is stored; "" or the problem.

        The problem is worded for the person who signs in.
        """
        try:
            checked = HttpsOnlyTransport(self._config, self.request.challenge, probing=True)
            self._proofs = DpopTransport(checked, self._config.url)
            transport = self._transport = LenientTransport(
                self._proofs,
                self._config.url,
                lambda: self._provider.context.auth_server_url,
                strict_issuer=self._strict_issuer,
            )
            async with (
                httpx2.AsyncClient(auth=self._provider, timeout=REQUEST_TIMEOUT_SECONDS, transport=transport) as http,
                http.stream("POST", self._config.url, json=PROBE, headers=PROBE_HEADERS) as response,
            ):
                is_refused = response.status_code in (401, 403)
        except OAuthTokenError as error:
            if any(code in str(error) for code in INVALID_CLIENT_ERRORS):
                await self.delete_grant()
            return "the authorization server did not give a token"
        except OAuthRegistrationError:
            return "the authorization server does not let clients register: give the entry an `oauth.client_id`"
        except OAuthFlowError as error:
            return f"the authorization failed ({clean_text(str(error), 200)})"
        except (InsecureUrl, UnsafeAuthorizationServer, AuthorizationRefused) as error:
            return str(error)
        except (httpx2.HTTPError, ValidationError, ValueError) as error:
            return f"the server or its authorization server cannot be used ({type(error).__name__})"
        return "the server refuses the new token" if is_refused else ""

    async def delete_grant(self) -> None:
        """Delete the grant and client registration: the next sign-in registers again."""
        async with self._grants.begin_transaction(*self._grant_key) as transaction:
            transaction.grant = None

    async def _show_page(self, url: str) -> None:
        url = self._join_query(url)
        if not is_permitted_url(url, self._config.url):
            raise InsecureUrl("the authorization server's page is not at an https:// address")
        self._require_pkce()
        self._choose_authentication()
        self._state = parse_qs(urlsplit(url).query).get("state", [""])[-1]
        await self._grants.expect_callback(self.ticket, self._state)
        if not self.page.done():
            self.page.set_result(url)

    def _join_query(self, url: str) -> str:
        """Return the page's URL with one query.

        The SDK appends its own to an `authorization_endpoint` that has a query already.
        """
        metadata = self._provider.context.oauth_metadata
        endpoint = str(metadata.authorization_endpoint) if metadata is not None else ""
        parts = urlsplit(endpoint)
        if not (parts.query or parts.fragment) or not url.startswith(f"{endpoint}?"):
            return url
        query = "&".join(filter(None, (parts.query, url.removeprefix(f"{endpoint}?"))))
        return urlunsplit(parts._replace(query=query, fragment=""))

    def _choose_authentication(self) -> None:
        """Let the client use a method that the token endpoint offers."""
        context = self._provider.context
        assert context.client_info is not None
        method = choose_auth_method(context.client_info, context.oauth_metadata)
        context.client_info = context.client_info.model_copy(update={"token_endpoint_auth_method": method})

    def _require_pkce(self) -> None:
        """Check that the authorization server declares PKCE, as MCP demands.

        Without PKCE, whoever sees a code can redeem it. Protocol 2025-03-26 has servers without any metadata, which
        cannot declare it: the administrator's file may name one. Metadata that fail to load do not make a newer server
        one of these.

        Raises:
            UnsafeAuthorizationServer: its metadata does not say so.
        """
        context = self._provider.context
        metadata = context.oauth_metadata
        is_legacy = metadata is None and context.protected_resource_metadata is None
        if is_legacy and not self._config.added_at_run_time:
            log.warning("pkce_not_declared", server=self._config.name)
            return
        if metadata is None or _PKCE_METHOD not in (metadata.code_challenge_methods_supported or ()):
            raise UnsafeAuthorizationServer(
                "its authorization server does not declare PKCE: `code_challenge_methods_supported` must contain S256"
            )

    async def _receive_answer(self) -> AuthorizationCodeResult:
        answer = await self._wait_for_callback(self.ticket, self._state)
        if error := answer.get("error"):
            if error in INVALID_CLIENT_ERRORS:
                await self.delete_grant()
            raise AuthorizationRefused(f"the authorization server said {str(error)[:100]!r}")
        issuer = self._name_issuer(answer.get("iss"))
        return AuthorizationCodeResult(code=answer.get("code", ""), state=answer.get("state"), iss=issuer)

    def _name_issuer(self, issuer: str | None) -> str | None:
        """Return the expected issuer for the one that the metadata state.

        Otherwise issuers are compared letter by letter (RFC 9207).
        """
        metadata = self._provider.context.oauth_metadata
        is_stated = issuer is not None and self._transport is not None and issuer == self._transport.stated_issuer
        return str(metadata.issuer) if is_stated and metadata is not None else issuer

    # --- the SDK's TokenStorage

    async def get_tokens(self) -> OAuthToken | None:
        """The stored token, only if the flow shall extend its scope."""
        if INSUFFICIENT_SCOPE not in (self.request.challenge or ""):
            return None
        grant = await self._grants.get_grant(*self._grant_key)
        if grant is None or grant.access_token is None:
            return None
        return OAuthToken(access_token=grant.access_token, token_type="Bearer", scope=grant.scope)  # noqa: S106

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Store the grant."""
        context = self._provider.context
        metadata = context.oauth_metadata
        endpoint = str(metadata.token_endpoint) if metadata else urljoin(self._config.url, "/token")
        assert context.client_info is not None
        is_bound = self._proofs is not None and self._proofs.is_bound
        async with self._grants.begin_transaction(*self._grant_key) as transaction:
            transaction.grant = Grant(
                dpop_key=self._proofs.key.pem if self._proofs is not None and is_bound else None,
                client=context.client_info.model_dump(mode="json", exclude_none=True),
                access_token=tokens.access_token,
                refresh_token=tokens.refresh_token,
                expires_at=get_expiry(tokens),
                scope=tokens.scope,
                token_endpoint=endpoint,
                resource=context.get_resource_url() if context.should_include_resource_param(_LEGACY_VERSION) else None,
            )

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """The configured client, or the registered one.

        None if the registered one has another callback address, as the gateway's own address may have changed, or a
        secret that has expired.
        """
        redirect_uris = self._provider.context.client_metadata.redirect_uris
        if (client := self._config.oauth) is not None:
            secret = client.client_secret.get_secret_value() if client.client_secret else None
            return OAuthClientInformationFull(
                client_id=client.client_id,
                client_secret=secret,
                token_endpoint_auth_method=client.token_endpoint_auth_method,
                redirect_uris=redirect_uris,
            )
        grant = await self._grants.get_grant(*self._grant_key)
        info = OAuthClientInformationFull.model_validate(grant.client) if grant and grant.client else None
        if info is not None and 0 < (info.client_secret_expires_at or 0) < time.time():
            return None
        registered_uris = [str(uri) for uri in (info.redirect_uris or ())] if info else []
        return info if registered_uris == [str(uri) for uri in redirect_uris or ()] else None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Store the client registration."""
        client = client_info.model_dump(mode="json", exclude_none=True)
        async with self._grants.begin_transaction(*self._grant_key) as transaction:
            transaction.grant = Grant(client=client)
