"""Rule for the gateway tools of a request, in every wire format."""

from collections.abc import Collection
from typing import NamedTuple

from gateway.domain.messages import GatewayTools


class ToolOffer(NamedTuple):
    """Sources of the offer beside the body.

    The `header` is X-Gateway-Tools; `default` is that of the key, or of the setting GATEWAY_TOOLS. `plain`: the
    request names a model without the gateway's tools.
    """

    header: str | None = None
    default: GatewayTools = "auto"
    plain: bool = False

    def select(self, body: str | Collection[str] | None, *, brings_tools: bool) -> tuple[str, ...] | None:
        """Return the names of the gateway tools on offer; None: all.

        `body` is what the body says of them, None if it says nothing. Then a client that brings tools gets its own
        alone, and one that brings none gets the gateway's, unless the key or the setting says otherwise.
        """
        if self.plain:
            return ()
        selection = body if self.header is None else self.header
        if selection is not None:
            return parse_tool_selection(selection)
        if self.default == "auto":
            return () if brings_tools else None
        return None if self.default == "all" else ()


def parse_tool_selection(selection: str | Collection[str]) -> tuple[str, ...] | None:
    """Return the names of the allowed gateway tools; None: all."""
    if isinstance(selection, str):
        if selection.strip().lower() == "all":
            return None
        selection = [] if selection.strip().lower() == "none" else [name.strip() for name in selection.split(",")]
    return tuple(dict.fromkeys(name for name in selection if name))
