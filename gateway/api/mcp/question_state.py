"""Binds the state of a server's question to its user."""

import base64

import mcp.types as t
import msgspec
from mcp import MCPError

from gateway.domain.messages import PendingInput, Principal
from gateway.store.encryption import Cipher


class _SealedState(msgspec.Struct, frozen=True):
    user: str
    tool: str
    state: str


class QuestionStates:
    """Encrypts the states that hosts return with the answers.

    All users may share the connection to the server, which then cannot tell whose question it is.
    """

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def seal(self, pending: PendingInput, tool: str, principal: Principal) -> PendingInput:
        """Replace the server's state by one for this user and tool."""
        if pending.state is None:
            return pending
        plain = msgspec.json.encode(_SealedState(principal.user, tool, pending.state))
        return msgspec.structs.replace(pending, state=self._cipher.encrypt(plain).decode())

    def open(self, sealed: str | None, tool: str, principal: Principal) -> str | None:
        """Return the server's state.

        Raises:
            MCPError: the state was changed, or belongs to another user or tool.
        """
        if sealed is None:
            return None
        plain = self._cipher.decrypt(sealed.encode()) if _is_canonical(sealed) else None
        try:
            opened = None if plain is None else msgspec.json.decode(plain, type=_SealedState)
        except msgspec.ValidationError:  # the cipher also encrypts other things
            opened = None
        if opened is None or (opened.user, opened.tool) != (principal.user, tool):
            raise MCPError(t.INVALID_PARAMS, "The requestState is not valid: call the tool again.")
        return opened.state


def _is_canonical(sealed: str) -> bool:
    """Whether a text is base64 as the cipher writes it.

    Decoding ignores characters after the padding.
    """
    try:
        return base64.urlsafe_b64encode(base64.urlsafe_b64decode(sealed)).decode() == sealed
    except ValueError:
        return False
