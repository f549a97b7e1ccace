"""MCP hosts whose users call tools over `/mcp`."""

from typing import Annotated

import msgspec
from pydantic import Field

from gateway.domain.messages import JsonObject

Root = Annotated[str, Field(max_length=2_000, pattern=r"^file:///")]
"""URI of a directory; the protocol allows no other scheme."""


class HostProfile(msgspec.Struct, frozen=True):
    """Protocol era and capabilities of the host that sent a call.

    `capabilities` has what it declared of elicitation, sampling, roots and pages (MCP Apps), in MCP's format.
    `session` is its legacy session; hosts of the current protocol have none.
    """

    is_legacy: bool
    capabilities: JsonObject
    session: str = ""

    def declares(self, capability: str) -> bool:
        return capability in self.capabilities

    def declares_elicitation(self, mode: str) -> bool:
        """Return whether the host declared a mode, form or URL."""
        return mode in self.capabilities.get("elicitation", ())
