"""Models in Anthropic's shape."""

from collections.abc import Sequence

from gateway.domain.messages import JsonObject
from gateway.ports.model import ModelInfo

_CREATED_AT = "2025-08-05T00:00:00Z"


def build_model(model: ModelInfo) -> JsonObject:
    """Build a model's entry."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": _CREATED_AT,
        "max_input_tokens": model.context_window,
        "max_tokens": model.max_output_tokens,
    }


def build_model_list(models: Sequence[ModelInfo], *, limit: int, after: str | None, before: str | None) -> JsonObject:
    """Build a page of the models, behind or before an id.

    An id that is not in the list stands for its beginning or its end.
    """
    ids = [model.id for model in models]
    start = ids.index(after) + 1 if after in ids else 0
    end = ids.index(before) if before in ids else len(ids)
    first = max(start, end - limit) if before in ids else start
    page = models[first : min(end, first + limit)]
    return {
        "data": [build_model(model) for model in page],
        "has_more": first > start if before in ids else first + limit < end,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
    }
