"""OAuth 2.1 towards protected MCP servers: tokens for requests, and the sign-ins that bring them.

Discovery, registration, PKCE and the exchange of the code are the SDK's. Grants are kept in the database, so that any
worker may use and refresh them.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import httpx2
import msgspec
from mcp.client.auth import OAuthClientProvider, OAuthFlowError, OAuthRegistrationError, OAuthTokenError
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl, ValidationError

from gateway.common.logging import get_logger
from gateway.domain.errors import Conflict, Forbidden, McpFailed, NotFound, StorageUnavailable
from gateway.domain.messages import Grant, JsonObject, Login, Principal, Question
from gateway.mcp_client.http_transport import certificates
from gateway.mcp_client.server_config import ServerConfig
from gateway.ports.tools import Grants, SignIn

log = get_logger(__name__)

EVERYBODY = ""
START_PATH, CALLBACK_PATH = "/api/v1/mcp/oauth/start", "/api/v1/mcp/oauth/callback"
CLIENT_PATH = "/api/v1/mcp/oauth/client.json"
_EARLY_SECONDS = 60.0
_REQUEST_SECONDS = 15.0
_LOGIN_SECONDS = 600.0
_FINISH_SECONDS = 30.0
_LOOK_SECONDS, _POLL_SECONDS = 0.5, 0.05
_MOST_LOGINS = 200
_MOST_CHALLENGE = 2_000
_LACKING = "insufficient_scope"
_PROBE: JsonObject = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "agent-gateway", "version": "1"},
    },
}
_PROBE_HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}


def owner_of(server: ServerConfig, principal: Principal | None) -> str:
    """Whose grant a connection uses."""
    return principal.user if principal is not None and server.share == "user" else EVERYBODY


class Tokens:
    """The access tokens of one owner at one server. A new one is fetched before the old one ends, by one worker.

    Without `grants` there are none. `refused`: the server has refused the last request for want of a good token.
    """

    def __init__(self, grants: Grants | None, server: ServerConfig, owner: str) -> None:
        self._grants = grants if server.signs_in else None
        self._place = (server.name, owner, server.url)
        self._grant: Grant | None = None
        self.refused = False
        self.challenge = ""

    @property
    def may_come(self) -> bool:
        """Whether somebody can sign in."""
        return self._grants is not None

    def forget(self) -> None:
        """Look at what is kept before the next request."""
        self._grant = None

    async def current(self, refused: str | None = None) -> str | None:
        """The token to send; `refused`: that one is good no more. None: somebody must sign in.

        Raises:
            StorageUnavailable: nobody can tell now.
        """
        if self._grants is None:
            return None
        if not _good(self._grant, refused):
            self._grant = await self._grants.get(*self._place)
        if self._grant is None or _good(self._grant, refused):
            return self._grant and self._grant.access_token
        async with self._grants.changing(*self._place) as change:
            if change.grant is not None and not _good(change.grant, refused):
                change.grant = await _refreshed(change.grant, self._place[2])
            self._grant = change.grant
        return self._grant and self._grant.access_token


def _good(grant: Grant | None, refused: str | None) -> bool:
    if grant is None or grant.access_token is None or grant.access_token == refused:
        return False
    return grant.expires_at is None or time.time() < grant.expires_at - _EARLY_SECONDS


async def _refreshed(grant: Grant, server_url: str) -> Grant | None:
    """The grant with a new access token; without one where there must be a new sign-in; None: not even the client's
    registration is good any more."""
    without = msgspec.structs.replace(grant, access_token=None, refresh_token=None, expires_at=None)
    if grant.refresh_token is None or grant.token_endpoint is None:
        return without
    client = OAuthClientInformationFull.model_validate(grant.client)
    form = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token, "client_id": client.client_id or ""}
    if grant.resource is not None:
        form["resource"] = grant.resource
    basic = None
    if client.client_secret and client.token_endpoint_auth_method == "client_secret_basic":  # noqa: S105
        basic = httpx2.BasicAuth(client.client_id or "", client.client_secret)
    elif client.client_secret:
        form["client_secret"] = client.client_secret
    async with httpx2.AsyncClient(timeout=_REQUEST_SECONDS, transport=_Guarded(server_url), auth=basic) as http:
        response = await http.post(grant.token_endpoint, data=form)
    if response.status_code >= 500 or response.status_code == 429:
        raise httpx2.ConnectError("the authorization server does not work now")
    if response.status_code != 200:
        error = _oauth_error(response)
        log.warning("oauth_refresh_refused", status=response.status_code, error=error)
        return None if error in ("invalid_client", "unauthorized_client") else without
    token = OAuthToken.model_validate_json(response.content)
    return msgspec.structs.replace(
        grant,
        access_token=token.access_token,
        refresh_token=token.refresh_token or grant.refresh_token,
        expires_at=_expiry(token),
        scope=token.scope or grant.scope,
    )


def _oauth_error(response: httpx2.Response) -> str:
    try:
        return str(response.json().get("error", ""))[:100]
    except (ValueError, AttributeError):
        return ""


def _expiry(token: OAuthToken) -> float | None:
    return None if token.expires_in is None else time.time() + token.expires_in


class AuthorizedTransport(httpx2.AsyncBaseTransport):
    """Adds the access token to each request; one that is refused is sent again with a fresh token, once."""

    def __init__(self, inner: httpx2.AsyncBaseTransport, tokens: Tokens) -> None:
        self._inner = inner
        self._tokens = tokens

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        token = await self._token()
        response = await self._send(request, token)
        if response.status_code == 401 and token is not None:
            token = await self._token(refused=token)
            if token is not None:
                await response.aclose()
                response = await self._send(request, token)
        challenge = response.headers.get("WWW-Authenticate", "")
        lacking = response.status_code == 403 and _LACKING in challenge
        if response.status_code == 401 or lacking:
            self._tokens.refused, self._tokens.challenge = True, challenge[:_MOST_CHALLENGE]
        elif response.is_success:
            self._tokens.refused = False
        return response

    async def _token(self, refused: str | None = None) -> str | None:
        try:
            return await self._tokens.current(refused)
        except (StorageUnavailable, ValidationError, ValueError) as error:
            raise httpx2.ConnectError("there is no access token now") from error

    async def _send(self, request: httpx2.Request, token: str | None) -> httpx2.Response:
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Logins(SignIn):
    """Sign-ins under way. See `SignIn`.

    One is a task here, which waits for the answer that some worker's callback page takes; whatever worker that is,
    the answer comes over the database. A worker that dies takes its sign-ins along: they are begun again.
    """

    def __init__(self, grants: Grants, public_url: str, find: Callable[[str], ServerConfig | None]) -> None:
        self._grants = grants
        self._public_url = public_url
        self._find = find
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._look = asyncio.Event()
        self.on_granted: Callable[[str, str], Awaitable[None]] | None = None
        self.on_change: Callable[[], None] | None = None

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def look(self) -> None:
        """Some sign-in has its answer."""
        self._look.set()

    async def question(self, server: ServerConfig, principal: Principal, challenge: str) -> Question | None:
        """What to ask of a user whose call needs a sign-in; None: only an admin may."""
        if server.share == "all" and principal.role != "admin":
            return None
        url = await self._ticket(server, principal, challenge)
        return Question(
            f"login:{server.name}",
            "authorization",
            f"Sign in to {server.name} ({urlsplit(server.url).hostname}) to go on.",
            url=url,
            login=server.name,
        )

    def client_document(self) -> JsonObject:
        """See `SignIn.client_document`."""
        told = _metadata(f"{self._public_url}{CALLBACK_PATH}").model_dump(mode="json", exclude_none=True)
        return told | {"client_id": f"{self._public_url}{CLIENT_PATH}", "token_endpoint_auth_method": "none"}

    async def offer(self, server: str, principal: Principal) -> str:
        return await self._ticket(self._protected(server, principal), principal, None)

    async def forget(self, server: str, principal: Principal) -> None:
        config = self._protected(server, principal)
        await self._grants.forget(config.name, owner_of(config, principal), config.url, by=principal.user)
        self._changed()

    def _changed(self) -> None:
        self.look()
        if self.on_change is not None:
            self.on_change()

    def _protected(self, name: str, principal: Principal) -> ServerConfig:
        config = self._find(name)
        if config is None:
            raise NotFound(f"There is no MCP server {name[:100]!r}.", param="name")
        if not config.signs_in:
            raise Conflict(f"Nobody signs in to {name!r}: its entry says what to send.", param="name")
        if config.share == "all" and principal.role != "admin":
            raise Forbidden("Only admins may sign in to a server for everybody.")
        return config

    async def _ticket(self, server: ServerConfig, principal: Principal, challenge: str | None) -> str:
        ticket = secrets.token_urlsafe(32)
        login = Login(server.name, owner_of(server, principal), server.url, principal.user, challenge)
        await self._grants.offer(ticket, login)
        return f"{self._public_url}{START_PATH}?{urlencode({'ticket': ticket})}"

    async def offered(self, ticket: str) -> Login:
        login = await self._grants.offered(ticket)
        if login is None:
            raise NotFound("This sign-in is over, or was never offered: ask for a new one.", param="ticket")
        return login

    async def begin(self, ticket: str) -> str:
        login = await self.offered(ticket)
        config = self._find(login.server)
        if config is None or config.url != login.url:
            raise NotFound(f"The MCP server {login.server!r} is not what it was: ask for a new sign-in.")
        if len(self._tasks) >= _MOST_LOGINS:
            raise McpFailed("Too many people sign in at once: try again in a moment.")
        if (earlier := self._tasks.pop(ticket, None)) is not None:
            earlier.cancel()
            await asyncio.gather(earlier, return_exceptions=True)
        flow = _Flow(self._grants, config, login, ticket, f"{self._public_url}{CALLBACK_PATH}", self._await_callback)
        task = asyncio.create_task(self._run(flow), name=f"login {login.server}")
        self._tasks[ticket] = task
        task.add_done_callback(lambda done: self._tasks.pop(ticket, None) if self._tasks.get(ticket) is done else None)
        page = asyncio.ensure_future(asyncio.shield(flow.page))
        await asyncio.wait((page, task), timeout=_REQUEST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if page.done():
            return page.result()
        page.cancel()
        problem = await self._grants.outcome(ticket) if task.done() else "it does not answer in time"
        task.cancel()
        raise McpFailed(f"The sign-in to {login.server!r} cannot begin: {problem or 'it wants none'}.")

    async def finish(self, ticket: str, answer: JsonObject) -> None:
        if not await self._grants.call_back(ticket, str(answer.get("state", "")), answer):
            raise NotFound("Nobody waits for this answer: begin the sign-in again.", param="state")
        self._changed()
        outcome: str | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_SECONDS):
                while (outcome := await self._grants.outcome(ticket)) is None:  # noqa: ASYNC110 - of any worker
                    await asyncio.sleep(_POLL_SECONDS)
        if outcome != "":
            raise McpFailed(f"The sign-in did not work: {outcome or 'there was no end to it'}.")

    async def _await_callback(self, ticket: str, state: str) -> JsonObject:
        while (answer := await self._callback(ticket, state)) is None:
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._look.wait()
        return answer

    async def _callback(self, ticket: str, state: str) -> JsonObject | None:
        try:
            return await self._grants.callback(ticket, state)
        except NotFound:  # begun again at another worker: give way, as to one that is begun again here
            raise asyncio.CancelledError from None

    async def _run(self, flow: "_Flow") -> None:
        """One sign-in, from discovery to the grant. However it ends, its outcome is kept."""
        login = flow.login
        try:
            async with asyncio.timeout(_LOGIN_SECONDS):
                problem = await flow.run()
        except TimeoutError:
            problem = "nobody came back from the authorization server's page in time"
            await flow.forget_client()
        if not problem and self.on_granted is not None:
            await self.on_granted(login.server, login.owner)
        log.info("oauth_login", server=login.server, owner=login.owner, by=login.by, problem=problem or None)
        await self._grants.end(flow.ticket, problem)


def _metadata(callback_url: str, scope: str | None = None) -> OAuthClientMetadata:
    return OAuthClientMetadata(
        redirect_uris=[AnyUrl(callback_url)],
        client_name="agent-gateway",
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        scope=scope,
    )


class _Flow:
    """One run of the SDK's authorization code flow, and the storage that it wants."""

    def __init__(
        self,
        grants: Grants,
        config: ServerConfig,
        login: Login,
        ticket: str,
        callback_url: str,
        await_callback: Callable[[str, str], Awaitable[JsonObject]],
    ) -> None:
        self.login = login
        self.ticket = ticket
        self.page: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._grants = grants
        self._config = config
        self._place = (login.server, login.owner, login.url)
        self._await_callback = await_callback
        self._state = ""
        scope = config.oauth.scope if config.oauth else None
        wanted = _metadata(callback_url, scope)
        document = callback_url.removesuffix(CALLBACK_PATH) + CLIENT_PATH
        self._provider = OAuthClientProvider(
            config.url, wanted, self, self._show, self._answer, document if document.startswith("https://") else None
        )

    async def run(self) -> str:
        """ "" once there is a grant, else what went wrong."""
        try:
            transport = _Guarded(self._config.url, self.login.challenge, probing=True)
            async with (
                httpx2.AsyncClient(auth=self._provider, timeout=_REQUEST_SECONDS, transport=transport) as http,
                http.stream("POST", self._config.url, json=_PROBE, headers=_PROBE_HEADERS) as response,
            ):
                refused = response.status_code in (401, 403)
        except OAuthTokenError as error:
            if "invalid_client" in str(error) or "unauthorized_client" in str(error):
                await self.forget_client()
            return "the authorization server did not give a token"
        except OAuthRegistrationError:
            return "the authorization server does not let clients register: give the entry an `oauth.client_id`"
        except OAuthFlowError as error:
            return f"the authorization failed ({str(error)[:200]})"
        except _Unfit as error:
            return str(error)
        except (httpx2.HTTPError, ValidationError, ValueError) as error:
            return f"the server or its authorization server cannot be used ({type(error).__name__})"
        return "the server refuses the token that it was given" if refused else ""

    async def forget_client(self) -> None:
        """The registration may be good no more: the next sign-in makes a new one."""
        async with self._grants.changing(*self._place) as change:
            change.grant = None

    async def _show(self, url: str) -> None:
        if not _permitted(url, self._config.url):
            raise _Unfit("the authorization server's page is not at an https:// address")
        state = parse_qs(urlsplit(url).query).get("state", [""])[0]
        self._state = state
        await self._grants.await_callback(self.ticket, state)
        if not self.page.done():
            self.page.set_result(url)

    async def _answer(self) -> AuthorizationCodeResult:
        answer = await self._await_callback(self.ticket, self._state)
        if error := answer.get("error"):
            if error in ("invalid_client", "unauthorized_client"):
                await self.forget_client()
            raise _Unfit(f"the authorization server said {str(error)[:100]!r}")
        return AuthorizationCodeResult(code=answer.get("code", ""), state=answer.get("state"), iss=answer.get("iss"))

    # --- the SDK's TokenStorage

    async def get_tokens(self) -> OAuthToken | None:
        """Only where a scope is missing does the flow begin with what there is."""
        grant = await self._grants.get(*self._place) if _LACKING in (self.login.challenge or "") else None
        if grant is None or grant.access_token is None:
            return None
        return OAuthToken(access_token=grant.access_token, token_type="Bearer", scope=grant.scope)  # noqa: S106

    async def set_tokens(self, tokens: OAuthToken) -> None:
        context = self._provider.context
        metadata = context.oauth_metadata
        endpoint = str(metadata.token_endpoint) if metadata else urljoin(self._config.url, "/token")
        assert context.client_info is not None
        async with self._grants.changing(*self._place) as change:
            change.grant = Grant(
                client=context.client_info.model_dump(mode="json", exclude_none=True),
                access_token=tokens.access_token,
                refresh_token=tokens.refresh_token,
                expires_at=_expiry(tokens),
                scope=tokens.scope,
                token_endpoint=endpoint,
                resource=context.get_resource_url() if context.should_include_resource_param("2025-11-25") else None,
            )

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        if (given := self._config.oauth) is not None:
            secret = given.client_secret.get_secret_value() if given.client_secret else None
            return OAuthClientInformationFull(
                client_id=given.client_id,
                client_secret=secret,
                token_endpoint_auth_method="client_secret_basic" if secret else "none",
                redirect_uris=self._provider.context.client_metadata.redirect_uris,
            )
        grant = await self._grants.get(*self._place)
        info = OAuthClientInformationFull.model_validate(grant.client) if grant and grant.client else None
        known = [str(uri) for uri in (info.redirect_uris or ())] if info else []
        wanted = [str(uri) for uri in self._provider.context.client_metadata.redirect_uris or ()]
        return info if known == wanted else None  # the gateway's own address may have changed

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        client = client_info.model_dump(mode="json", exclude_none=True)
        async with self._grants.changing(*self._place) as change:
            change.grant = Grant(client=client)


class _Unfit(Exception):
    """Something that the gateway will not do, in words for the person who signs in."""


class _Guarded(httpx2.AsyncBaseTransport):
    """Goes only where a protected server may send the gateway: to https, or to its own host.

    With `probing`, the first request is answered as if the server refused it, for it need not refuse every one: with
    its `challenge` where that is known, else with what it says to this one.
    """

    def __init__(self, server_url: str, challenge: str | None = None, *, probing: bool = False) -> None:
        self._inner = httpx2.AsyncHTTPTransport(verify=certificates())
        self._server_url = server_url
        self._challenge = challenge
        self._probing = probing

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if not _permitted(str(request.url), self._server_url):
            raise _Unfit("the server names an authorization server that is not at an https:// address")
        if not self._probing:
            return await self._inner.handle_async_request(request)
        self._probing = False
        challenge = self._challenge
        if challenge is None:
            response = await self._inner.handle_async_request(request)
            await response.aclose()
            challenge = response.headers.get("WWW-Authenticate", "")
        status = 403 if _LACKING in challenge else 401
        return httpx2.Response(status, request=request, headers={"WWW-Authenticate": challenge} if challenge else None)

    async def aclose(self) -> None:
        await self._inner.aclose()


def _permitted(url: str, server_url: str) -> bool:
    parts, own = urlsplit(url), urlsplit(server_url)
    local = {parts.hostname, own.hostname} <= {"localhost", "127.0.0.1", "::1"}
    return parts.scheme == "https" or (parts.scheme == "http" and (local or parts.hostname == own.hostname))
