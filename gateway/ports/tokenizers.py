"""Interface of tokenizers, which count the tokens of texts exactly."""

from abc import abstractmethod
from typing import Protocol


class Tokenizer(Protocol):
    """Counts tokens of the models that it supports."""

    @abstractmethod
    def supports(self, model: str) -> bool: ...

    @abstractmethod
    def count_text(self, text: str) -> int:
        """Count the tokens of a text.

        It takes time in proportion to the text, so call it in a thread.
        """
        ...
