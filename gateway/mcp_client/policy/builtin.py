"""Runs the built-in tools, which read resources and prompts for a model."""

from collections.abc import Sequence

from gateway.domain.messages import JsonObject, PendingInput, Principal, StoredQuestion, ToolResult, ToolSpec
from gateway.mcp_client.builtin_tools import SIGN_IN, run_builtin_tool
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.ports.tools import CallObserver, Toolbox


class BuiltinToolRunner(ToolboxWrapper):
    """Runs built-in tools over `content`.

    Passes calls of servers' own tools, and of the sign-in tool, to `toolbox`.
    """

    def __init__(self, toolbox: Toolbox, content: Toolbox) -> None:
        super().__init__(toolbox)
        self._content = content

    async def call_tool(
        self,
        spec: ToolSpec,
        arguments: JsonObject,
        *,
        principal: Principal,
        observer: CallObserver | None = None,
        answers: Sequence[StoredQuestion] = (),
    ) -> ToolResult | PendingInput:
        if spec.helper and spec.tool != SIGN_IN:
            return await run_builtin_tool(self._content, spec, arguments, principal)
        return await self._toolbox.call_tool(spec, arguments, principal=principal, observer=observer, answers=answers)
