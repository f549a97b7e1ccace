"""Limits the size of the answers that the library `ddgs` reads."""

from dataclasses import dataclass
from typing import Any

MAX_ANSWER_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True)
class BoundedAnswer:
    """The part of a response that the library's engines use."""

    status_code: int
    content: bytes

    @property
    def text(self) -> str:
        """The body, which search engines send as UTF-8."""
        return self.content.decode("utf-8", "replace")


def limit_answers() -> None:
    """Make the library give up bodies that are too large.

    Their decompressed size counts. Its client has no setting for that, and reads bodies of any size.
    """
    from ddgs.http_client import HttpClient

    HttpClient.request = _request_bounded  # pyright: ignore[reportAttributeAccessIssue]


def _request_bounded(client: Any, *arguments: Any, **options: Any) -> BoundedAnswer:
    import primp
    from ddgs.exceptions import DDGSException, TimeoutException

    try:
        with client.client.request(*arguments, **options, stream=True) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise DDGSException("the answer is too large")
            return BoundedAnswer(response.status_code, bytes(body))
    except primp.TimeoutError as error:
        raise TimeoutException(error) from error
    except primp.PrimpError as error:
        raise DDGSException(f"{type(error).__name__}: {error!r}") from error
