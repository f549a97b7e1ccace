"""Repetition of tool calls whose outcome is unknown."""

import asyncio

from mcp.types import CallToolResult

from gateway.common.concurrency import Backoff, Deadline
from gateway.common.logging import get_logger
from gateway.domain.messages import PendingInput, ToolSpec
from gateway.mcp_client.connection.connection import ServerConnection
from gateway.mcp_client.connection.errors import ToolCallError
from gateway.ports.tools import ToolCallRequest

log = get_logger(__name__)

_MAX_REPEATS = 4
_MAX_REPEAT_SECONDS = 30.0
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.2, 2.0


async def call_with_repeats(
    connection: ServerConnection, request: ToolCallRequest, timeout: float
) -> CallToolResult | PendingInput:
    """Call a tool, and repeat interrupted calls where that is safe.

    A read-only or idempotent tool is called again once, after a lost connection. A tool that deduplicates is called
    again after any unknown outcome: at least once, and for 30 seconds while its server restarts.

    Raises:
        ToolCallError: there is no result. `did_run` is None if any of the calls may have run.
    """
    spec, deadline = request.spec, None
    max_repeats = _MAX_REPEATS if spec.deduplicates else 1
    backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
    may_have_run, repeats = False, 0
    while True:
        try:
            return await connection.send_tool_call(request, timeout)
        except ToolCallError as error:
            may_have_run = may_have_run or error.did_run is None
            deadline = deadline or Deadline.after(_MAX_REPEAT_SECONDS)
            is_last = repeats >= max_repeats or deadline.is_over
            if not may_have_run or is_last or not _may_repeat(spec, error):
                error.did_run = None if may_have_run else error.did_run
                raise
            repeats += error.did_run is None or not spec.deduplicates  # a server that restarts was not called
        log.info("tool_call_repeated", server=spec.server, tool=spec.tool, repeats=repeats)
        if spec.deduplicates:
            await asyncio.sleep(backoff.next_delay())


def _may_repeat(spec: ToolSpec, error: ToolCallError) -> bool:
    if error.needs_sign_in or error.did_run or error.refusal is not None:
        return False
    return spec.deduplicates or (error.connection_lost and spec.is_repeatable)
