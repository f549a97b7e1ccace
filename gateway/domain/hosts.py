"""MCP hosts whose users call tools over `/mcp`."""

import msgspec

from gateway.domain.messages import JsonObject


class HostProfile(msgspec.Struct, frozen=True):
    """Protocol era and capabilities of the host that sent a call.

    `capabilities` has what it declared of elicitation, sampling, roots and pages (MCP Apps), in MCP's format.
    """

    is_legacy: bool
    capabilities: JsonObject

    def declares(self, capability: str) -> bool:
        return capability in self.capabilities

    def declares_elicitation(self, mode: str) -> bool:
        """Return whether the host declared a mode, form or URL."""
        return mode in self.capabilities.get("elicitation", ())
