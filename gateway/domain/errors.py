"""Everything the gateway tells a caller went wrong.

    GatewayError                 500 internal_error
     ├─ InvalidRequest           422 invalid_request
     │   ├─ PayloadTooLarge      413 payload_too_large
     │   ├─ UnsupportedParameter 422 unsupported_parameter
     │   └─ PromptTooLong        422 prompt_too_long
     ├─ NotAuthenticated         401 not_authenticated
     ├─ BudgetExceeded           402 budget_exceeded
     ├─ Forbidden                403 forbidden
     ├─ WrongHost                421 wrong_host
     ├─ NotFound                 404 not_found
     │   ├─ ModelNotFound        404 model_not_found
     │   └─ ToolNotFound         404 tool_not_found
     ├─ Conflict                 409 conflict
     │   ├─ ConversationBusy     409 conversation_busy
     │   └─ TurnNotKept          409 turn_not_kept
     ├─ RateLimited              429 rate_limited
     │   └─ TooManyStreams       429 too_many_streams
     ├─ Overloaded               503 overloaded
     │   ├─ ServerStopping       503 server_stopping
     │   └─ StorageUnavailable   503 storage_unavailable
     ├─ ClientGone               499 client_disconnected
     ├─ McpFailed                502 mcp_failed
     ├─ TurnTimeout              504 turn_timeout
     ├─ TurnLost                 503 turn_lost
     └─ ModelError               502 model_error
         ├─ ModelKeyRefused      502 model_key_refused
         ├─ ModelRateLimited     429 model_rate_limited
         ├─ UpstreamRateLimited  429 upstream_rate_limited
         ├─ ModelRequestRefused  400 model_request_refused
         │   └─ ToolCallUnreadable 502 tool_call_unreadable
         ├─ ModelUnavailable     503 model_unavailable
         ├─ ModelStreamBroken    502 model_stream_broken
         └─ OutputInvalid        502 structured_output_invalid

The message is public: it goes to clients as it stands, so it never holds internal detail.
"""

from typing import ClassVar

import msgspec


class GatewayError(Exception):
    """An error with a stable `code`, an HTTP `status` and a public `message`.

    `param` names the offending field of the request; `retry_after` is in seconds.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    default_message: ClassVar[str] = "Something went wrong inside the gateway. The request id finds it in the log."

    def __init__(
        self, message: str | None = None, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        self.message = message or self.default_message
        self.param = param
        self.retry_after = retry_after
        super().__init__(self.message)

    def info(self) -> "ErrorInfo":
        return ErrorInfo(code=self.code, message=self.message, param=self.param)


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The public part of an error, as events and JSON bodies carry it."""

    code: str
    message: str
    param: str | None = None


class InvalidRequest(GatewayError):
    code = "invalid_request"
    status = 422
    default_message = "The request is not valid."


class PayloadTooLarge(InvalidRequest):
    code = "payload_too_large"
    status = 413


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class PromptTooLong(InvalidRequest):
    code = "prompt_too_long"


class NotAuthenticated(GatewayError):
    code = "not_authenticated"
    status = 401
    default_message = "Send an API key, as `Authorization: Bearer …` or `X-API-Key: …`."


class BudgetExceeded(GatewayError):
    code = "budget_exceeded"
    status = 402
    default_message = "The budget is used up."


class Forbidden(GatewayError):
    code = "forbidden"
    status = 403


class WrongHost(GatewayError):
    code = "wrong_host"
    status = 421
    default_message = "The gateway does not answer to this name: see TRUSTED_HOSTS."


class NotFound(GatewayError):
    code = "not_found"
    status = 404
    default_message = "There is nothing here under that name."


class ModelNotFound(NotFound):
    code = "model_not_found"


class ToolNotFound(NotFound):
    code = "tool_not_found"


class Conflict(GatewayError):
    code = "conflict"
    status = 409


class ConversationBusy(Conflict):
    code = "conversation_busy"
    default_message = "Another turn of this conversation has not ended yet."


class TurnNotKept(Conflict):
    code = "turn_not_kept"
    default_message = (
        "This turn is not kept: it can be followed only while it runs, and only at the worker that runs it."
    )


class JournalExpired(Conflict):
    code = "journal_expired"
    status = 410
    default_message = "The events of this turn are no longer stored. Read the turn itself instead."


class RateLimited(GatewayError):
    code = "rate_limited"
    status = 429
    default_message = "Too many requests. Try again shortly."


class TooManyStreams(RateLimited):
    code = "too_many_streams"


class Overloaded(GatewayError):
    code = "overloaded"
    status = 503
    default_message = "The gateway is at its limit. Try again shortly."


class ServerStopping(Overloaded):
    code = "server_stopping"
    default_message = "The gateway is stopping. Try again shortly."


class StorageUnavailable(Overloaded):
    code = "storage_unavailable"
    default_message = (
        "The database cannot be reached, and a turn that cannot be kept is not started. Try again shortly."
    )


class ClientGone(GatewayError):
    """The client hung up before there was an answer. Nobody reads this."""

    code = "client_disconnected"
    status = 499
    default_message = "The client closed the connection."


class McpFailed(GatewayError):
    code = "mcp_failed"
    status = 502
    default_message = "The MCP server did not answer as it should."


class TurnTimeout(GatewayError):
    code = "turn_timeout"
    status = 504
    default_message = "The turn took longer than it may."


class TurnLost(GatewayError):
    code = "turn_lost"
    status = 503
    default_message = "The worker that ran this turn is gone, and of a turn that is not kept nobody can go on."


class ModelError(GatewayError):
    """The model's server did not answer as it should. `retryable`: the same request may well succeed."""

    code = "model_error"
    status = 502
    default_message = "The model's server answered with an error."
    retryable: ClassVar[bool] = False


class ModelKeyRefused(ModelError):
    code = "model_key_refused"
    default_message = "The model's server refused the gateway's API key. The administrator must check GROQ_API_KEY."


class ModelRateLimited(ModelError):
    code = "model_rate_limited"
    status = 429
    default_message = "The model's rate limit is reached."


class UpstreamRateLimited(ModelError):
    """The gateway itself did not ask the model's server, knowing that it would wait for too long or be refused."""

    code = "upstream_rate_limited"
    status = 429
    default_message = "The model's rate limit is used up for longer than this request can wait."


class ModelRequestRefused(ModelError):
    code = "model_request_refused"
    status = 400


class ToolCallUnreadable(ModelRequestRefused):
    """The model's server could not read a tool call; `written` is what the model wrote."""

    code = "tool_call_unreadable"
    status = 502
    default_message = "The model wrote tool calls that cannot be read."

    def __init__(self, message: str | None = None, *, param: str | None = None, written: str = "") -> None:
        super().__init__(message, param=param)
        self.written = written


class ModelUnavailable(ModelError):
    code = "model_unavailable"
    status = 503
    default_message = "The model's server cannot be reached or is overloaded. Try again shortly."
    retryable = True


class ModelStreamBroken(ModelError):
    code = "model_stream_broken"
    default_message = "The model's answer broke off before its end."
    retryable = True


class OutputInvalid(ModelError):
    code = "structured_output_invalid"
    default_message = "The model did not answer in the form that response_format asks for."


def error_of(info: ErrorInfo) -> GatewayError:
    """The error that an event's public part came from; one of an unknown code is a plain `GatewayError`."""
    return _by_code(GatewayError).get(info.code, GatewayError)(info.message, param=info.param)


def _by_code(kind: type[GatewayError]) -> dict[str, type[GatewayError]]:
    found = {kind.code: kind}
    for child in kind.__subclasses__():
        found |= _by_code(child)
    return found
