"""Level of the log messages of legacy servers."""

from typing import cast, get_args

from mcp import Client, MCPError
from mcp.types import LoggingLevel

from gateway.common.concurrency import Deadline
from gateway.common.logging import get_logger

log = get_logger(__name__)

_LEVELS: tuple[str, ...] = get_args(LoggingLevel)
_TIMEOUT_SECONDS = 5.0


class ServerLogLevel:
    """Lowest level that the server was asked for in this session.

    All callers share the session, so the level only falls. Until one asks for a level, the server chooses. A server of
    the current protocol gets the level with each request instead.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._client: Client | None = None
        self._level = len(_LEVELS)

    async def request_level(self, client: Client, level: str | None) -> None:
        """Ask the server for messages of this level, if necessary.

        A server that refuses or does not answer in five seconds keeps its level.
        """
        if level not in _LEVELS or client.session.initialize_result is None or not client.server_capabilities.logging:
            return
        if client is not self._client:
            self._client, self._level = client, len(_LEVELS)
        number = _LEVELS.index(level)
        if number >= self._level:
            return
        self._level = number
        try:
            async with Deadline.after(_TIMEOUT_SECONDS).limit():
                await client.set_logging_level(cast(LoggingLevel, level))  # pyright: ignore[reportDeprecated]
        except (MCPError, TimeoutError) as error:
            log.info("mcp_log_level_refused", server=self._server, level=level, error=type(error).__name__)
