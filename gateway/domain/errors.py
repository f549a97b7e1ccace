"""Errors that callers of the gateway receive.

    GatewayError                 500 internal_error
     ├─ StorageInternalError     500 internal_error
     ├─ InvalidRequest           422 invalid_request
     │   ├─ PayloadTooLarge      413 payload_too_large
     │   ├─ ListTooLong          422 invalid_request
     │   ├─ TextTooLong          422 invalid_request
     │   ├─ UnsupportedParameter 422 unsupported_parameter
     │   ├─ PromptTooLong        422 prompt_too_long
     │   └─ StorageRefused       422 storage_refused
     ├─ NotAuthenticated         401 not_authenticated
     ├─ BudgetExceeded           402 budget_exceeded
     ├─ Forbidden                403 forbidden
     │   └─ ScopeMissing         403 forbidden
     ├─ WrongHost                421 wrong_host
     ├─ NotFound                 404 not_found
     │   ├─ ModelNotFound        404 model_not_found
     │   ├─ PreviousResponseNotFound 404 previous_response_not_found
     │   ├─ ToolNotFound         404 tool_not_found
     │   └─ ToolsetNotFound      404 toolset_not_found
     ├─ Conflict                 409 conflict
     │   ├─ ConversationBusy     409 conversation_busy
     │   ├─ JournalExpired       410 journal_expired
     │   └─ TurnNotStored        409 turn_not_kept
     ├─ RateLimited              429 rate_limited
     │   └─ TooManyStreams       429 too_many_streams
     ├─ Overloaded               503 overloaded
     │   ├─ ServerStopping       503 server_stopping
     │   ├─ SessionUnavailable   503 session_unavailable
     │   └─ StorageUnavailable   503 storage_unavailable
     ├─ ExtraNotInstalled        501 extra_not_installed
     ├─ ClientGone               499 client_disconnected
     ├─ McpServerError           502 mcp_failed
     ├─ TurnTimeout              504 turn_timeout
     ├─ TurnTooLarge             502 turn_too_large
     ├─ TurnLost                 503 turn_lost
     ├─ TurnTakenOver            503 turn_taken_over
     ├─ TurnUnreadable           500 turn_unreadable
     ├─ TooManyAttempts          500 too_many_attempts
     └─ ModelError               502 model_error
         ├─ ModelKeyRefused      502 model_key_refused
         ├─ ModelNotPermitted    403 model_not_permitted
         ├─ ModelRateLimited     429 model_rate_limited
         ├─ UpstreamRateLimited  429 upstream_rate_limited
         ├─ ModelRequestRefused  400 model_request_refused
         │   └─ ToolCallUnreadable 502 tool_call_unreadable
         ├─ ModelUnavailable     503 model_unavailable
         ├─ ModelStreamBroken    502 model_stream_broken
         ├─ ModelAnswerTooLong   502 model_answer_too_long
         └─ OutputInvalid        502 structured_output_invalid

The message is public: clients receive it unchanged, so it must not contain internal details.
"""

from typing import Any, ClassVar

import msgspec


class GatewayError(Exception):
    """Error with a stable `code`, an HTTP `status` and a public `message`.

    `param` names the offending field of the request; `retry_after` is in seconds, by default `default_retry_after`.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    default_message: ClassVar[str] = "An internal error occurred. The gateway's log lists it under the request id."
    default_retry_after: ClassVar[float | None] = None
    openai_code: ClassVar[str | None] = None
    """Code for OpenAI's clients, if that of `code` is too general."""

    def __init__(
        self, message: str | None = None, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        self.message = message or self.default_message
        self.param = param
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        super().__init__(self.message)

    def to_error_info(self) -> "ErrorInfo":
        return ErrorInfo(code=self.code, message=self.message, param=self.param)


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Public part of an error, for events and JSON bodies."""

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


class ListTooLong(InvalidRequest):
    """A list of the request has more items than a setting allows."""

    openai_code = "array_above_max_length"


class TextTooLong(InvalidRequest):
    """A text of the request has more characters than a setting allows."""

    openai_code = "string_above_max_length"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class PromptTooLong(InvalidRequest):
    code = "prompt_too_long"


class StorageRefused(InvalidRequest):
    """The database refuses a value for its content; a repetition fails again."""

    code = "storage_refused"
    default_message = "The database refuses to store the content."


class StorageInternalError(GatewayError):
    """A statement or the schema is wrong.

    A repetition fails again.

    Clients receive it as any other internal error.
    """


WRITE_REFUSALS = (StorageRefused, StorageInternalError)
"""Errors of a write that no repetition can store."""


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


class ScopeMissing(Forbidden):
    """The credential lacks a scope.

    `scopes` are those that it has, and the missing one.
    """

    def __init__(self, message: str, scopes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.scopes = scopes


class WrongHost(GatewayError):
    code = "wrong_host"
    status = 421
    default_message = "The gateway does not accept this host name. Add it to TRUSTED_HOSTS."


class NotFound(GatewayError):
    code = "not_found"
    status = 404
    default_message = "Not found."


class ModelNotFound(NotFound):
    code = "model_not_found"


class PreviousResponseNotFound(NotFound):
    """The response to continue does not exist or was not stored."""

    code = "previous_response_not_found"


class ToolNotFound(NotFound):
    code = "tool_not_found"


class ToolsetNotFound(NotFound):
    code = "toolset_not_found"


class Conflict(GatewayError):
    code = "conflict"
    status = 409
    default_message = "Another request has created or changed this at the same time."


class ConversationBusy(Conflict):
    code = "conversation_busy"
    default_message = "Another turn of this conversation is still active."


class TurnNotStored(Conflict):
    code = "turn_not_kept"
    default_message = (
        "This turn is not stored, so it can be followed only while it runs, and only on the worker that runs it."
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
    default_message = "The gateway is overloaded. Try again shortly."


class ServerStopping(Overloaded):
    code = "server_stopping"
    default_message = "The gateway is stopping. Try again shortly."


class SessionUnavailable(Overloaded):
    """The worker of an MCP session does not answer."""

    code = "session_unavailable"
    default_message = "The worker of this MCP session does not answer now. Try again shortly, or open a new session."
    default_retry_after = 5.0


class StorageUnavailable(Overloaded):
    code = "storage_unavailable"
    default_message = "The database is unavailable. Try again shortly."
    default_retry_after = 1.0


class ExtraNotInstalled(GatewayError):
    """The route needs a package of an extra."""

    code = "extra_not_installed"
    status = 501
    default_message = "This needs a package that is not installed here."


class ClientGone(GatewayError):
    """The client closed the connection before the answer.

    It does not receive this error.
    """

    code = "client_disconnected"
    status = 499
    default_message = "The client closed the connection."


class McpServerError(GatewayError):
    code = "mcp_failed"
    status = 502
    default_message = "The MCP server failed or sent an invalid response."

    refusal: dict[str, Any] | None = None
    """The server's own JSON-RPC error, for MCP hosts: code, message and data."""


class TurnTimeout(GatewayError):
    code = "turn_timeout"
    status = 504
    default_message = "The turn exceeded its time limit."


class TurnTooLarge(GatewayError):
    """The events of the turn exceed TURN_MAX_BYTES."""

    code = "turn_too_large"
    status = 502
    default_message = "The turn has produced more events than the gateway allows."


class TurnLost(GatewayError):
    code = "turn_lost"
    status = 503
    default_message = "The worker stopped, and this turn was not stored, so it cannot be resumed."


class TurnTakenOver(GatewayError):
    """Another worker owns the turn now.

    This worker must not write for it.
    """

    code = "turn_taken_over"
    status = 503
    default_message = "Another worker has taken this turn over."


class TurnUnreadable(GatewayError):
    code = "turn_unreadable"
    default_message = "This release of the gateway cannot read the stored turn, so it cannot continue."


class TooManyAttempts(GatewayError):
    code = "too_many_attempts"
    default_message = (
        "The worker of this turn died or lost its lease again and again, so the turn was not started once more."
    )


class ModelError(GatewayError):
    """The model's server failed.

    `retryable`: the same request may succeed when it is sent again.
    """

    code = "model_error"
    status = 502
    default_message = "The model's server returned an error."
    retryable: ClassVar[bool] = False


class ModelKeyRefused(ModelError):
    code = "model_key_refused"
    default_message = "The model's server refused the gateway's API key. The administrator must check GROQ_API_KEY."


class ModelNotPermitted(ModelError):
    """The gateway's key may not use this model."""

    code = "model_not_permitted"
    status = 403
    default_message = "The gateway's key may not use this model."


class ModelRateLimited(ModelError):
    code = "model_rate_limited"
    status = 429
    default_message = "The model's rate limit is reached."


class UpstreamRateLimited(ModelError):
    """The gateway did not send the call.

    It would wait too long for the rate limit of the model's key.
    """

    code = "upstream_rate_limited"
    status = 429
    default_message = "The model's rate limit is exhausted for longer than this request can wait."


class ModelRequestRefused(ModelError):
    code = "model_request_refused"
    status = 400


class ToolCallUnreadable(ModelRequestRefused):
    """The model's server could not parse a tool call.

    `written` is the model's text.
    """

    code = "tool_call_unreadable"
    status = 502
    default_message = "The model wrote tool calls that cannot be parsed."

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


class ModelAnswerTooLong(ModelError):
    code = "model_answer_too_long"
    default_message = "The model's answer is longer than the gateway allows."


class OutputInvalid(ModelError):
    code = "structured_output_invalid"
    default_message = "The model's answer does not match response_format."


def error_from_info(info: ErrorInfo) -> GatewayError:
    """Restore an error from its public part.

    An unknown code gives a plain `GatewayError`.
    """
    return _errors_by_code(GatewayError).get(info.code, GatewayError)(info.message, param=info.param)


def _errors_by_code(kind: type[GatewayError]) -> dict[str, type[GatewayError]]:
    kinds: dict[str, type[GatewayError]] = {}
    for child in kind.__subclasses__():
        kinds |= _errors_by_code(child)
    return kinds | {kind.code: kind}  # a subclass may have the same code
