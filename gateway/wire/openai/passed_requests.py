"""Requests that are passed on to the model's server, in OpenAI's format."""

from typing import Annotated, Any

import msgspec
from pydantic import ConfigDict, Field

from gateway.domain.tokens import estimate_text_tokens
from gateway_runtime.requests.model import ItemList, RequestModel

_ModelName = Annotated[str, Field(min_length=1, max_length=200)]


class PassedBody(RequestModel):
    """A body whose other fields are passed on as they are."""

    model_config = ConfigDict(extra="allow")

    model: _ModelName

    def encode(self) -> bytes:
        """Write the body anew, so that the server reads what was checked.

        A field that the client sent twice is sent once.
        """
        return msgspec.json.encode(self.model_dump(mode="json", exclude_unset=True))


class EmbeddingsRequest(PassedBody):
    """Texts, or their tokens, to embed."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"model": "nomic-embed-text-v1_5", "input": "hello"}]}
    )

    input: str | ItemList[str] | ItemList[int] | ItemList[ItemList[int]] = Field(min_length=1)
    dimensions: Any = None
    encoding_format: Any = None
    user: Any = None

    def estimate_tokens(self) -> int:
        """Estimate the tokens of the input."""
        value: Any = self.input
        if isinstance(value, str):
            return estimate_text_tokens(value) + 1
        return sum(map(_count_item, value))


class SpeechRequest(PassedBody):
    """A text to speak."""

    input: str = Field(min_length=1, max_length=100_000)
    voice: Any = None
    instructions: Any = None
    response_format: Any = None
    sample_rate: Any = None
    speed: Any = None
    stream_format: Any = None

    def estimate_tokens(self) -> int:
        return estimate_text_tokens(self.input) + 1


def _count_item(item: str | int | list[int]) -> int:
    if isinstance(item, str):
        return estimate_text_tokens(item) + 1
    return len(item) if isinstance(item, list) else 1
