"""Headers of requests, with arguments and secrets."""

import re

from tools_server.http_tools.errors import CallFailed, DefinitionInvalid
from tools_server.http_tools.templates import CallValues, Placeholder, TextTemplate

_MAX_LENGTH = 8_192
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RESERVED_NAMES = (
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
)
_RESERVED_PREFIXES = ("proxy-", "sec-", "expect", "accept-encoding", "keep-alive")


class HeaderTemplate:
    """The template of a header.

    The pairs of `Cookie` are templates of their own, so that each may be absent. Their arguments are percent-encoded.
    """

    def __init__(self, name: str, text: str) -> None:
        """Raises:
        DefinitionInvalid: the name or the text is not valid.
        """
        lowered = name.lower()
        if not _TOKEN.fullmatch(name):
            raise DefinitionInvalid("headers", f"{name[:80]!r} is not a name of a header")
        if lowered in _RESERVED_NAMES or lowered.startswith(_RESERVED_PREFIXES):
            raise DefinitionInvalid(f"headers.{name}", "is set by the server itself")
        if _CONTROL.search(text) or len(text) > _MAX_LENGTH:
            raise DefinitionInvalid(f"headers.{name}", "has control characters, or is too long")
        self._name = name
        self._is_cookie = lowered == "cookie"
        self._parts = [TextTemplate(part.strip()) for part in (text.split(";") if self._is_cookie else (text,))]

    @property
    def placeholders(self) -> list[Placeholder]:
        return [placeholder for part in self._parts for placeholder in part.placeholders]

    def render(self, values: CallValues) -> str | None:
        """Fill in the template; None if an argument is absent.

        Raises:
            CallFailed: a value does not fit into a header.
        """
        texts = [text for part in self._parts if (text := part.render(values, encoded=self._is_cookie)) is not None]
        if not texts:
            return None
        header = "; ".join(texts).strip()
        if _CONTROL.search(header) or len(header) > _MAX_LENGTH:
            raise CallFailed(f"An argument does not fit into the header {self._name}: control characters, or too long.")
        try:
            header.encode()
        except UnicodeEncodeError:
            raise CallFailed("An argument has characters that are not valid Unicode.") from None
        return header
