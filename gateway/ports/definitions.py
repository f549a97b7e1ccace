"""Port to the tool server's routes for the definitions of tools."""

from abc import abstractmethod
from typing import Literal, Protocol

from gateway.domain.messages import JsonObject, Principal


class DefinitionForwarder(Protocol):
    """Forwards requests of admins to the tool server's `/definitions`."""

    @abstractmethod
    async def forward(
        self, principal: Principal, method: Literal["GET", "POST", "PATCH", "DELETE"], path: str, body: bytes | None
    ) -> JsonObject:
        """Send a request with the caller's identity token; return the answer's body.

        Raises:
            Forbidden: the key is limited to some tools or to other servers.
            GatewayError: the tool server refuses the request.
            McpServerError: there is no tool server, or it did not answer; a change may have been made.
        """
        ...
