"""Types of errors in spans and labels: codes, never messages."""

from asyncio import CancelledError

from gateway.domain.errors import GatewayError


def find_error_type(error: BaseException) -> str:
    """Return the code of an error, or the name of its class."""
    if isinstance(error, GatewayError):
        return error.code
    return "cancelled" if isinstance(error, CancelledError) else type(error).__name__
