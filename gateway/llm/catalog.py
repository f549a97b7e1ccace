"""What is known of Groq's models (collected in autumn 2026), and what became of the retired ones."""

from collections.abc import Mapping

import msgspec

from gateway.errors import ModelNotFound, UnsupportedParameter
from gateway.llm.base import ModelInfo
from gateway.messages import Parameters

_LEVELS = ("low", "medium", "high")

KNOWN: tuple[ModelInfo, ...] = (
    ModelInfo("openai/gpt-oss-120b", 131_072, 65_536, "production", "OpenAI", 0.15, 0.60, 0.075, _LEVELS),
    ModelInfo("openai/gpt-oss-20b", 131_072, 65_536, "production", "OpenAI", 0.075, 0.30, 0.0375, _LEVELS),
    ModelInfo("qwen/qwen3.8-27b", 131_072, 16_384, "preview", "Alibaba Cloud", 0.80, 4.00, 0.40, ("none", "default")),
    ModelInfo("openai/gpt-oss-safeguard-20b", 131_072, 65_536, "preview", "OpenAI", 0.075, 0.30, None, _LEVELS),
    ModelInfo("groq/compound", 131_072, 8_192, "system", "Groq", tools=False),
    ModelInfo("groq/compound-mini", 131_072, 8_192, "system", "Groq", tools=False),
)

RETIRED: Mapping[str, str] = {
    "gemma2-9b-it": "openai/gpt-oss-20b",
    "llama-3.1-70b-versatile": "openai/gpt-oss-120b",
    "llama-3.1-8b-instant": "openai/gpt-oss-20b",
    "llama-3.3-70b-versatile": "openai/gpt-oss-120b",
    "llama-3.3-8b-instant": "openai/gpt-oss-20b",
    "meta-llama/llama-4-maverick-17b-128e-instruct": "openai/gpt-oss-120b",
    "meta-llama/llama-4-scout-17b-16e-instruct": "openai/gpt-oss-120b",
    "mixtral-8x7b-32768": "openai/gpt-oss-120b",
    "qwen/qwen3-32b": "qwen/qwen3.8-27b",
    "qwen/qwen3.6-27b": "qwen/qwen3.8-27b",
}


# What none of Groq's models takes, with the value that stands for having none.
_NOT_TAKEN: Mapping[str, float] = {
    "top_k": 0,
    "repetition_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
}


class Catalog:
    """The models on offer. What the server lists wins over what is known here; the rest of each entry stays."""

    def __init__(self, *, aliases: bool = True) -> None:
        self._models = {model.id: model for model in KNOWN}
        self._aliases = aliases

    def update(self, listed: list[ModelInfo]) -> None:
        """Take over the server's own list, as far as it goes beyond or against what is known."""
        self._models.update({model.id: model for model in listed})

    def all(self) -> list[ModelInfo]:
        return list(self._models.values())

    def known(self, model: str) -> ModelInfo | None:
        return self._models.get(model)

    def fit(self, parameters: Parameters, model: ModelInfo, *, drop: bool) -> tuple[Parameters, tuple[str, ...]]:
        """See `Models.fit`. A value that changes nothing is left out silently: clients send such by default."""
        warnings: list[str] = []
        left_out: dict[str, None] = {}
        for name, neutral in _NOT_TAKEN.items():
            value = getattr(parameters, name)
            if value is None:
                continue
            left_out[name] = None
            if value != neutral and not drop:
                raise UnsupportedParameter(f"The model {model.id!r} does not take {name}: leave it out.", param=name)
            if value != neutral:
                warnings.append(f"{name} was left out: the model {model.id!r} does not take it.")
        return msgspec.structs.replace(parameters, **left_out), tuple(warnings)

    def resolve(self, model: str) -> tuple[ModelInfo, tuple[str, ...]]:
        """See `Models.resolve`. An id that the server lists is never an alias."""
        if (found := self._models.get(model)) is not None:
            return found, ()
        successor = RETIRED.get(model)
        if successor is None:
            raise ModelNotFound(f"There is no model {model!r}. On offer: {', '.join(self._models)}.", param="model")
        if not self._aliases:
            raise ModelNotFound(f"The model {model!r} is retired. Its successor is {successor!r}.", param="model")
        return self._models[successor], (f"The model {model!r} is retired: {successor!r} answers in its place.",)
