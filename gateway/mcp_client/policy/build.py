"""The order of the policy wrappers: the one place that composes them."""

from gateway.mcp_client.policy.access import ItemPermissions, ToolDenyList, ToolPermissions
from gateway.mcp_client.policy.builtin import BuiltinToolRunner
from gateway.mcp_client.policy.content import ArgumentDepthLimit, RedactingToolbox, SanitizingToolbox
from gateway.ports.tools import Toolbox
from gateway_runtime.redaction.redactor import Redactor


def apply_policy(
    toolbox: Toolbox,
    *,
    deny: tuple[str, ...] = (),
    redactor: Redactor | None = None,
    sanitizes: bool = True,
    max_result_chars: int = 32_000,
) -> Toolbox:
    """Wrap a toolbox with every check that all callers must pass.

    `deny`: globs over exposed tool names and `server/tool`. Access is checked before content, so that a refused call
    does no work. The built-in tools read through the same permissions, redaction and sanitizing as the API's routes.
    Without `sanitizes`, servers' own content is unchanged, for hosts of the MCP endpoint. Results of built-in tools
    for models have at most `max_result_chars`.
    """
    redactor = redactor or Redactor()
    toolbox = ItemPermissions(toolbox, deny)
    readable_toolbox = RedactingToolbox(SanitizingToolbox(toolbox), redactor)
    toolbox = BuiltinToolRunner(toolbox, readable_toolbox, max_result_chars)
    toolbox = RedactingToolbox(SanitizingToolbox(toolbox) if sanitizes else toolbox, redactor)
    return ToolDenyList(ToolPermissions(ArgumentDepthLimit(toolbox)), deny)
