"""Which stored turns of its user a credential may read."""

from gateway.domain.messages import Principal


def get_reader_key(principal: Principal) -> str | None:
    """Return the key whose turns alone the caller may read.

    None: the caller has the scope `history`, and may read all turns of its user. Other callers may read, repeat and
    continue only what they started.
    """
    return None if principal.has_scope("history") else principal.key or ""
