"""Runs the built-in tools, which read resources and prompts for a model."""

from gateway.domain.messages import PendingInput, ToolResult
from gateway.mcp_client.builtin_tools import SIGN_IN, run_builtin_tool
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.ports.tools import Toolbox, ToolCallRequest


class BuiltinToolRunner(ToolboxWrapper):
    """Runs built-in tools over `content`.

    Passes calls of servers' own tools, and of the sign-in tool, to `toolbox`. A model gets at most `max_result_chars`.
    """

    def __init__(self, toolbox: Toolbox, content: Toolbox, max_result_chars: int) -> None:
        super().__init__(toolbox)
        self._content = content
        self._max_result_chars = max_result_chars

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        if request.spec.helper and request.spec.tool != SIGN_IN:
            request.require_lease()
            return await run_builtin_tool(self._content, request, self._max_result_chars)
        return await self._toolbox.call_tool(request)
