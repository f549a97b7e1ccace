"""Sign-ins of users at protected MCP servers.

Discovery, registration, PKCE and the code exchange are the SDK's. Grants are stored in the database, so that every
worker can use and refresh them.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from gateway.common.concurrency import Deadline, TaskSet, wait_or_poll
from gateway.common.logging import get_logger
from gateway.domain.errors import Conflict, Forbidden, GatewayError, McpServerError, NotFound, StorageUnavailable
from gateway.domain.grants import AuthorizationRequest
from gateway.domain.messages import JsonObject, Principal, Question
from gateway.mcp_client.oauth.authorization_flow import AuthorizationFlow, make_client_metadata
from gateway.mcp_client.oauth.https_only import INSUFFICIENT_SCOPE, REQUEST_TIMEOUT_SECONDS
from gateway.mcp_client.oauth.tokens import SHARED_OWNER, get_grant_owner
from gateway.ports.grants import GrantStore
from gateway.ports.servers import ServerConfig
from gateway.ports.tools import SignIn

log = get_logger(__name__)

START_PATH, CALLBACK_PATH = "/api/v1/mcp/oauth/start", "/api/v1/mcp/oauth/callback"
CLIENT_PATH = "/api/v1/mcp/oauth/client.json"
_SIGN_IN_TIMEOUT_SECONDS = 600.0
_FINISH_TIMEOUT_SECONDS = 30.0
_CALLBACK_POLL_SECONDS, _OUTCOME_POLL_SECONDS = 0.5, 0.05
_MAX_SIGN_INS, MAX_USER_SIGN_INS = 200, 10
MAX_CALL_SIGN_INS = 3
"""Sign-ins that one call may ask for."""
_ATTEMPT_MARK = ":attempt-"


class _SignInTask(NamedTuple):
    user: str
    task: asyncio.Task[None]


class SignInService(SignIn):
    """Starts and finishes sign-ins.

    Each one is a task of the worker whose start page was opened.

    The authorization server's answer arrives through the database, whichever worker's callback page receives it. A
    worker that dies loses its sign-ins: users start them again.
    """

    def __init__(
        self,
        grants: GrantStore,
        public_url: str,
        find_config: Callable[[str], ServerConfig | None],
        *,
        strict_issuer: bool = False,
    ) -> None:
        self._grants = grants
        self._public_url = public_url
        self._find_config = find_config
        self._strict_issuer = strict_issuer
        self._flows = TaskSet("mcp sign-in")
        self._sign_ins: dict[str, _SignInTask] = {}
        """Sign-ins of this worker by ticket, oldest first."""
        self._grants_changed = asyncio.Event()
        self.on_granted: Callable[[str, str], Awaitable[None]] | None = None
        """Called with server and owner once there is a new grant."""
        self.on_change: Callable[[], None] | None = None
        """Called when a grant or a sign-in has changed here.

        It informs the other workers.
        """

    async def cancel_sign_ins(self) -> None:
        """Cancel the sign-ins under way."""
        await self._flows.stop()

    def on_grants_changed(self) -> None:
        """Check for answers now: one may have arrived at another worker."""
        self._grants_changed.set()

    # --- offers

    async def make_question(
        self, server: ServerConfig, principal: Principal, challenge: str, answered: Collection[str] = ()
    ) -> Question | None:
        """The question to a user whose call needs a sign-in.

        None if only an admin may sign in, or if another sign-in would not help: `answered` are the keys of the call's
        last questions. A server may ask for other scopes, or move to another authorization server and refuse the
        tokens of the old one with the same challenge, so a call asks up to three times, but once for the same scopes.
        """
        if server.share == "all" and principal.role != "admin":
            return None
        key = f"login:{server.name}"
        earlier = dict(_split_key(name) for name in answered if name.startswith(key))
        if INSUFFICIENT_SCOPE in challenge:
            key += f":{sha256(challenge.encode()).hexdigest()[:16]}"
            if key in earlier:
                return None
        attempt = 1 + max(earlier.values(), default=0)
        if attempt > MAX_CALL_SIGN_INS:
            return None
        key += f"{_ATTEMPT_MARK}{attempt}" if attempt > 1 else ""
        url = await self._create_ticket(server, principal, challenge)
        return Question(
            key,
            "authorization",
            f"Sign in to {server.name} ({urlsplit(server.url).hostname}) to go on.",
            url=url,
            login=server.name,
        )

    def get_client_metadata(self) -> JsonObject:
        """See `SignIn.get_client_metadata`."""
        metadata = make_client_metadata(self._callback_url).model_dump(mode="json", exclude_none=True)
        return metadata | {"client_id": self._document_url, "token_endpoint_auth_method": "none"}

    async def create_sign_in_url(self, server: str, principal: Principal) -> str:
        """See `SignIn.create_sign_in_url`."""
        config = self._get_protected_server(server, principal)
        challenge = await self._grants.get_challenge(config.name, get_grant_owner(config, principal), config.url)
        return await self._create_ticket(config, principal, challenge)

    async def sign_out(self, server: str, principal: Principal) -> None:
        """See `SignIn.sign_out`."""
        config = self._get_protected_server(server, principal)
        await self._grants.delete_grant(config.name, get_grant_owner(config, principal), config.url, by=principal.user)
        self._report_change()

    async def list_signed_in(self, servers: Collection[str], principal: Principal) -> set[str]:
        """See `SignIn.list_signed_in`."""
        configs = [config for name in servers if (config := self._find_config(name)) is not None]
        protected = {config.name: config for config in configs if config.allows_sign_in}
        if not protected:
            return set()
        grants = await self._grants.list_grants((principal.user, SHARED_OWNER))
        keys = {name: (name, get_grant_owner(config, principal), config.url) for name, config in protected.items()}
        return {name for name, key in keys.items() if (grant := grants.get(key)) and (grant.access_token is not None)}

    async def get_request(self, ticket: str) -> AuthorizationRequest:
        """See `SignIn.get_request`."""
        request = await self._grants.find_request(ticket)
        if request is None:
            raise NotFound("This sign-in has ended or does not exist: ask for a new one.", param="ticket")
        return request

    # --- flows

    async def begin_sign_in(self, ticket: str) -> str:
        """See `SignIn.begin_sign_in`."""
        request = await self.get_request(ticket)
        config = self._find_config(request.server)
        if config is None or config.url != request.url:
            raise NotFound(f"The MCP server {request.server!r} has been changed: ask for a new sign-in.")
        await self._cancel_earlier_flows(ticket, request.by)
        if len(self._flows) >= _MAX_SIGN_INS:
            raise McpServerError("Too many sign-ins are in progress: try again in a moment.")
        flow = AuthorizationFlow(
            self._grants,
            config,
            request,
            ticket,
            callback_url=self._callback_url,
            document_url=self._document_url if self._document_url.startswith("https://") else None,
            strict_issuer=self._strict_issuer,
            wait_for_callback=self._wait_for_callback,
        )
        task = self._flows.spawn(self._run_flow(flow))
        self._sign_ins[ticket] = _SignInTask(request.by, task)
        task.add_done_callback(lambda ended_task: self._discard_task(ticket, ended_task))
        await asyncio.wait((flow.page, task), timeout=REQUEST_TIMEOUT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if flow.page.done():
            return flow.page.result()
        problem = await self._grants.get_outcome(ticket) if task.done() else "it does not answer in time"
        task.cancel()
        raise McpServerError(f"The sign-in to {request.server!r} cannot begin: {problem or 'it does not ask for one'}.")

    async def finish_sign_in(self, ticket: str, answer: JsonObject) -> None:
        """See `SignIn.finish_sign_in`."""
        if not await self._grants.save_callback(ticket, str(answer.get("state", "")), answer):
            raise NotFound("No sign-in waits for this answer: begin the sign-in again.", param="state")
        self._report_change()
        outcome: str | None = None
        with contextlib.suppress(TimeoutError):
            async with Deadline.after(_FINISH_TIMEOUT_SECONDS).limit():
                # Polled, because the flow may run in another worker.
                while (outcome := await self._grants.get_outcome(ticket)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(_OUTCOME_POLL_SECONDS)
        if outcome != "":
            raise McpServerError(f"The sign-in did not work: {outcome or 'it did not end in time'}.")

    async def _cancel_earlier_flows(self, ticket: str, user: str) -> None:
        """Cancel the flow of an earlier visit of the start page.

        Cancel also the user's oldest one if the user has as many as possible, so that nobody takes the others' slots.
        """
        own = [key for key, sign_in in self._sign_ins.items() if sign_in.user == user and key != ticket]
        for key in (ticket, *own[: len(own) - MAX_USER_SIGN_INS + 1]):
            if (earlier := self._sign_ins.pop(key, None)) is not None:
                earlier.task.cancel()
                await asyncio.gather(earlier.task, return_exceptions=True)

    def _discard_task(self, ticket: str, task: asyncio.Task[None]) -> None:
        if ticket in self._sign_ins and self._sign_ins[ticket].task is task:
            del self._sign_ins[ticket]

    async def _run_flow(self, flow: AuthorizationFlow) -> None:
        """Run one sign-in, and store its outcome however it ends."""
        request = flow.request
        try:
            async with Deadline.after(_SIGN_IN_TIMEOUT_SECONDS).limit():
                problem = await flow.run_to_grant()
        except TimeoutError:
            problem = "the user did not come back from the authorization server's page in time"
            await flow.delete_grant()
        except GatewayError as error:
            problem = error.message
        if not problem:
            self._report_change()  # before turns resume, whose calls need the new grant
            if self.on_granted is not None:
                await self.on_granted(request.server, request.owner)
        log.info("sign_in_finished", server=request.server, owner=request.owner, by=request.by, problem=problem or None)
        await self._grants.save_outcome(flow.ticket, problem)

    async def _wait_for_callback(self, ticket: str, state: str) -> JsonObject:
        while True:
            self._grants_changed.clear()
            try:
                answer = await self._grants.get_callback(ticket, state)
            except NotFound:  # the sign-in was started again at another worker, so this flow ends
                raise asyncio.CancelledError from None
            except StorageUnavailable:
                answer = None
            if answer is not None:
                return answer
            await wait_or_poll(self._grants_changed, _CALLBACK_POLL_SECONDS)

    # --- helpers

    @property
    def _callback_url(self) -> str:
        return f"{self._public_url}{CALLBACK_PATH}"

    @property
    def _document_url(self) -> str:
        return f"{self._public_url}{CLIENT_PATH}"

    def _report_change(self) -> None:
        self.on_grants_changed()
        if self.on_change is not None:
            self.on_change()

    def _get_protected_server(self, name: str, principal: Principal) -> ServerConfig:
        config = self._find_config(name)
        if config is None:
            raise NotFound(f"There is no MCP server {name[:100]!r}.", param="name")
        if not config.allows_sign_in:
            raise Conflict(f"Users cannot sign in to {name!r}: its entry contains the credentials.", param="name")
        if config.share == "all" and principal.role != "admin":
            raise Forbidden("Only admins may sign in to a server that all users share.")
        return config

    async def _create_ticket(self, server: ServerConfig, principal: Principal, challenge: str | None) -> str:
        ticket = secrets.token_urlsafe(32)
        request = AuthorizationRequest(
            server.name, get_grant_owner(server, principal), server.url, principal.user, challenge
        )
        await self._grants.save_request(ticket, request)
        return f"{self._public_url}{START_PATH}?{urlencode({'ticket': ticket})}"


def _split_key(key: str) -> tuple[str, int]:
    """Split a question's key into its sign-in and attempt."""
    sign_in, _, attempt = key.partition(_ATTEMPT_MARK)
    return sign_in, int(attempt) if attempt.isdecimal() else 1
