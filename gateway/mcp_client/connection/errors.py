"""Errors of requests to an MCP server, and their descriptions."""

from typing import Literal, cast

import httpx2
from mcp import MCPError

from gateway.common.sanitize import clean_text
from gateway.domain.messages import JsonObject
from gateway.mcp_client.size_limit import TOO_LARGE

GRANT_UNAVAILABLE_KEY = "grant_unavailable"
"""In the `data` of a JSON-RPC error that the gateway itself makes."""

MISSING_TOKEN_KEY = "missing_token"  # noqa: S105 - a name, no secret
TokenProblem = Literal[
    "caller_unknown", "caller_foreign", "caller_gone", "caller_refused", "gateway_refused", "issuer_unavailable"
]
TOKEN_PROBLEMS: dict[TokenProblem, str] = {
    "caller_unknown": "it needs the user's own token, and an API key is none: sign in at the identity provider",
    "caller_foreign": "it takes tokens of another identity provider than the user's",
    "caller_gone": "the gateway no longer has the user's own token: sign in again and repeat the request",
    "caller_refused": "the identity provider refuses the user's own token: sign in again and repeat the request",
    "gateway_refused": "the authorization server refuses the gateway's credentials",
    "issuer_unavailable": "the authorization server does not give a token now: try again in a moment",
}
"""Reasons why a request has no token.

No part of them comes from outside.
"""

_TOO_LARGE_MESSAGES = (
    TOO_LARGE,
    f"Failed to parse JSON response: {TOO_LARGE}",
    "SSE stream failed: Server-sent event exceeded the ",
)
"""How the SDK's messages for an answer that exceeds its limit begin."""
_WRONG_TRANSPORT_MESSAGES = ("Not Found", "Server returned an error response", "Unexpected content type")
"""How the SDK's messages for an answer without JSON-RPC begin."""


class ToolCallError(Exception):
    """A request to a server has no result.

    `str()` is for the model. `did_run`: False if the tool provably did not run, None if that is unknown.
    `connection_lost`: a retry may succeed. `refusal`: the JSON-RPC error that the server answered with, if any.
    `needs_sign_in`: a user must sign in to the server first; `challenge` is the `WWW-Authenticate` header of the
    refused request. `storage_unavailable`: the gateway's own database is the reason.
    """

    def __init__(
        self,
        message: str,
        *,
        did_run: bool | None,
        connection_lost: bool = False,
        refusal: JsonObject | None = None,
        needs_sign_in: bool = False,
        challenge: str = "",
        storage_unavailable: bool = False,
    ) -> None:
        super().__init__(message)
        self.did_run = did_run
        self.connection_lost = connection_lost
        self.refusal = refusal
        self.needs_sign_in = needs_sign_in
        self.challenge = challenge
        self.storage_unavailable = storage_unavailable


class GrantUnavailable(httpx2.TransportError):
    """Error of a request whose token cannot be read.

    The database that has the token is unavailable. The server is not at fault.
    """


class TokenUnavailable(httpx2.TransportError):
    """Error of an unsent request, for lack of a token."""

    def __init__(self, problem: TokenProblem) -> None:
        super().__init__(TOKEN_PROBLEMS[problem])
        self.problem = problem


def is_grant_unavailable(error: MCPError) -> bool:
    """Whether an error is `GrantUnavailable`, as `FaultIsolatingTransport` reports it."""
    return bool(_get_own_data(error).get(GRANT_UNAVAILABLE_KEY))


def describe_token_problem(error: MCPError) -> str | None:
    """The text of a `TokenUnavailable`, as `FaultIsolatingTransport` reports it."""
    problem = _get_own_data(error).get(MISSING_TOKEN_KEY)
    return TOKEN_PROBLEMS.get(problem) if isinstance(problem, str) else None  # pyright: ignore[reportArgumentType, reportCallIssue]


def _get_own_data(error: MCPError) -> JsonObject:
    data: object = error.data
    return cast("JsonObject", data) if isinstance(data, dict) else {}


def is_answer_too_large(error: MCPError) -> bool:
    """Whether a body or an event of the server exceeds its limit."""
    return error.message.startswith(_TOO_LARGE_MESSAGES)


class RequestNotSent(Exception):
    """The request did not reach the tool and may be retried."""


def _find_innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast(BaseException, error.exceptions[0])  # pyright: ignore[reportUnknownMemberType]
    return error


def find_token_problem(error: BaseException) -> str | None:
    """Return why a failed start had no token to send.

    None if it failed for another reason.
    """
    match _find_innermost(error):
        case TokenUnavailable() as problem:
            return str(problem)
        case MCPError() as refusal:
            return describe_token_problem(refusal)
        case _:
            return None


def is_wrong_transport(error: BaseException) -> bool:
    """Return whether a failed start may be due to the transport."""
    match _find_innermost(error):
        case httpx2.HTTPStatusError() | httpx2.SSEError():
            return True
        case MCPError(message=message):
            return message.startswith(_WRONG_TRANSPORT_MESSAGES)
        case _:
            return False


def is_unreached(error: BaseException) -> bool:
    """Return whether a failed start has sent the server nothing."""
    return isinstance(_find_innermost(error), httpx2.ConnectError | httpx2.ConnectTimeout)


def describe_error(error: BaseException) -> str:
    """Reason of a connection error for people.

    Names the innermost error's kind, without addresses or internals.
    """
    match error := _find_innermost(error):
        case TokenUnavailable():
            return str(error)
        case GrantUnavailable():
            return "the sign-in to it cannot be read: the gateway's database is unavailable"
        case httpx2.ConnectError():
            return "nothing answers at its address"
        case TimeoutError() | httpx2.TimeoutException():
            return "it does not answer in time"
        case httpx2.HTTPStatusError():
            return f"it answers with the status {error.response.status_code}"
        case MCPError():
            return f"it answered with an error: {clean_text(error.message, 200)}"
        case ValueError() | RuntimeError():
            return "its answer does not fit the protocol"
        case NotADirectoryError():
            return "its working directory does not exist"
        case FileNotFoundError() | PermissionError():
            return f"its command cannot be run: {error.strerror}"
        case _:
            return f"the connection failed ({type(error).__name__})"
