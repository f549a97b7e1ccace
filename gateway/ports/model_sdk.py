"""Interfaces of the SDKs `groq` and `openai`.

They cover what the gateway uses.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol


class SdkClient(Protocol):
    """Client of a model server: `groq.AsyncGroq` or `openai.AsyncOpenAI`.

    `get` returns an `httpx.Response` if it is the requested type. Headers with the value `Omit` are not sent.
    """

    @property
    def base_url(self) -> object: ...
    @property
    def timeout(self) -> Any: ...
    @property
    def auth_headers(self) -> dict[str, str]: ...
    @property
    def default_headers(self) -> Mapping[str, object]: ...
    @property
    def get(self) -> Callable[..., Awaitable[Any]]: ...
    @abstractmethod
    async def close(self) -> None: ...


class SdkModule(Protocol):
    """Classes of the module of an SDK."""

    @property
    def APIError(self) -> type[Exception]: ...  # noqa: N802
    @property
    def APIConnectionError(self) -> type[Exception]: ...  # noqa: N802
    @property
    def APIStatusError(self) -> type[Exception]: ...  # noqa: N802
    @property
    def APITimeoutError(self) -> type[Exception]: ...  # noqa: N802
    @property
    def Omit(self) -> Callable[[], object]: ...  # noqa: N802


class SdkResponse(Protocol):
    """Response of a model server."""

    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def is_stream_consumed(self) -> bool: ...
    @property
    def content(self) -> bytes: ...


class SdkStatusError(Protocol):
    """The `APIStatusError` of an SDK. `body`: the decoded body of the response."""

    @property
    def response(self) -> SdkResponse: ...
    @property
    def body(self) -> object: ...
