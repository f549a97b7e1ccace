"""Parts of request bodies that several wire formats share."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

UNION_TAG_PREFIX = "~"
"""First character of tags that error messages leave out.

The tags are those of a union of bodies.
"""


def _to_conversation_id(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value == "" else value


ConversationId = Annotated[str | None, BeforeValidator(_to_conversation_id, json_schema_input_type=str | int | None)]
"""Id of a conversation as text; None if it is empty."""
ToolsetChoice = Annotated[
    str | None,
    Field(
        max_length=64, description="Toolset whose tools alone are on offer, under its names. Default: that of the key."
    ),
]
