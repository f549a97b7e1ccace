"""Catalogue of models: what is known of Groq's (autumn 2026), successors of retired ones, and the server's list."""

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.domain.errors import ModelNotFound, UnsupportedParameter
from gateway.domain.messages import JsonObject, Parameters
from gateway.ports.model import ModelInfo, Models

_REASONING_LEVELS = ("low", "medium", "high")
_PENALTIES = ("top_k", "repetition_penalty", "frequency_penalty", "presence_penalty")
_NO_REASONING = (*_PENALTIES, "reasoning_effort", "reasoning_format", "include_reasoning")
_OSS = (*_PENALTIES, "reasoning_format")
_WINDOW, _OUTPUT = 131_072, 65_536
_UNKNOWN_WINDOW, _UNKNOWN_OUTPUT = 131_072, 16_384


def _describe_model(
    name: str, status: str, owner: str, most: int, prices: tuple[float | None, ...], **more: Any
) -> ModelInfo:
    given = dict(zip(("price_in", "price_out", "price_cached"), prices, strict=True))
    return ModelInfo(name, _WINDOW, most, status, owner, **given, **more)  # type: ignore[arg-type]


_GPT: JsonObject = {
    "reasoning_efforts": _REASONING_LEVELS, "parallel_calls": False, "strict_schema": True, "not_taken": _OSS,
}  # fmt: skip
_NO_PRICES = (None, None, None)
GROQ_MODELS: tuple[ModelInfo, ...] = (
    _describe_model("openai/gpt-oss-120b", "production", "OpenAI", _OUTPUT, (0.15, 0.60, 0.075), **_GPT),
    _describe_model("openai/gpt-oss-20b", "production", "OpenAI", _OUTPUT, (0.075, 0.30, 0.0375), **_GPT),
    _describe_model(
        "qwen/qwen3.8-27b", "preview", "Alibaba Cloud", 16_384, (0.80, 4.00, 0.40),
        reasoning_efforts=("none", "default"), strict_schema=True, not_taken=_PENALTIES,
    ),
    _describe_model(
        "openai/gpt-oss-safeguard-20b", "preview", "OpenAI", _OUTPUT, (0.075, 0.30, None),
        **{**_GPT, "strict_schema": False},
    ),
    _describe_model("groq/compound", "system", "Groq", 8_192, _NO_PRICES, tools=False, not_taken=_NO_REASONING),
    _describe_model("groq/compound-mini", "system", "Groq", 8_192, _NO_PRICES, tools=False, not_taken=_NO_REASONING),
)  # fmt: skip

RETIRED_MODELS: Mapping[str, str] = {
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

# Values that change nothing: clients send them by default.
_NO_OP_VALUES: Mapping[str, float] = {
    "top_k": 0,
    "repetition_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2), "top_p": (0, 1), "frequency_penalty": (-2, 2), "presence_penalty": (-2, 2),
}  # fmt: skip
_MAX_STOPS = 4
_REASONING_FORMATS = ("parsed", "raw", "hidden")


class _ListedModel(msgspec.Struct):
    """One entry of a server's list of models."""

    id: str
    active: bool | None = None
    owned_by: str | None = None
    context_window: int | None = None
    max_model_len: int | None = None
    max_completion_tokens: int | None = None


class Catalog(Models):
    """The available models. The server's list overrides what is known here, field by field.

    With `open_ended`, only the server's list counts, and any model may be requested before the list has been read.
    """

    def __init__(
        self, models: tuple[ModelInfo, ...] = GROQ_MODELS, *, aliases: bool = True, open_ended: bool = False,
        unsupported_parameters: tuple[str, ...] = _PENALTIES,
    ) -> None:  # fmt: skip
        self._models = {model.id: model for model in models}
        self._aliases = aliases and not open_ended
        self._open_ended = open_ended
        self._unsupported_parameters = unsupported_parameters

    def update_models(self, listed: list[JsonObject]) -> None:
        """Merge the server's list. Entries that are not models, and inactive ones, are ignored."""
        for entry in listed:
            try:
                model = msgspec.convert(entry, _ListedModel, strict=False)
            except msgspec.ValidationError:
                continue
            if model.active is not False:
                self._models[model.id] = self._merge_model(self._models.get(model.id), model)

    def _merge_model(self, known: ModelInfo | None, listed: _ListedModel) -> ModelInfo:
        window = listed.context_window or listed.max_model_len
        window = window or (known.context_window if known else _UNKNOWN_WINDOW)
        most = listed.max_completion_tokens
        most = most or (known.max_output_tokens if known else min(window, _UNKNOWN_OUTPUT))
        base = known or self._describe_unknown(listed.id, owned_by=listed.owned_by)
        return msgspec.structs.replace(base, context_window=window, max_output_tokens=most)

    def _describe_unknown(self, model: str, owned_by: str | None = None) -> ModelInfo:
        return ModelInfo(
            model, _UNKNOWN_WINDOW, _UNKNOWN_OUTPUT, owned_by=owned_by, not_taken=self._unsupported_parameters
        )

    def list_models(self) -> list[ModelInfo]:
        return list(self._models.values())

    def get_model_info(self, model: str) -> ModelInfo:
        """What is known of a model, with defaults for an unknown one."""
        return self._models.get(model) or self._describe_unknown(model)

    def resolve(self, model: str) -> tuple[ModelInfo, tuple[str, ...]]:
        """See `Models.resolve`. An id in the server's list is never an alias."""
        if (found := self._models.get(model)) is not None:
            return found, ()
        if self._open_ended and not self._models:
            return self._describe_unknown(model), ()
        successor = RETIRED_MODELS.get(model)
        if successor is None or self._open_ended:
            offered = ", ".join(self._models)
            raise ModelNotFound(f"There is no model {model[:200]!r}. Available: {offered[:2_000]}.", param="model")
        if not self._aliases:
            raise ModelNotFound(f"The model {model!r} is retired. Its successor is {successor!r}.", param="model")
        return self._models[successor], (f"The model {model!r} is retired: {successor!r} answers in its place.",)

    def adapt_parameters(
        self, parameters: Parameters, model: ModelInfo, *, drop: bool
    ) -> tuple[Parameters, tuple[str, ...]]:
        """See `Models.adapt_parameters`. A value that changes nothing is left out silently."""
        warnings: list[str] = []
        left_out: dict[str, None] = {}
        for name in parameters.__struct_fields__:
            value = getattr(parameters, name)
            if value is None:
                continue
            if name in model.not_taken and value == _NO_OP_VALUES.get(name):
                left_out[name] = None
                continue
            allowed = _describe_allowed(name, value, parameters, model)
            if allowed is None:
                continue
            if not drop:
                shown = str(value)[:100]
                raise UnsupportedParameter(
                    f"The model {model.id!r} does not take {name}={shown}: {allowed}.", param=name
                )
            left_out[name] = None
            warnings.append(f"{name} was left out: the model {model.id!r} does not take it ({allowed}).")
        return msgspec.structs.replace(parameters, **left_out), tuple(warnings)


def _describe_allowed(name: str, value: Any, parameters: Parameters, model: ModelInfo) -> str | None:
    """What the model takes in place of this value; None if it takes it."""
    if name in model.not_taken:
        return "leave it out"
    if name in _RANGES:
        low, high = _RANGES[name]
        return None if low <= value <= high else f"it must be from {low:g} to {high:g}"
    match name:
        case "max_tokens":
            return None if 1 <= value <= model.max_output_tokens else f"it must be from 1 to {model.max_output_tokens}"
        case "stop":
            return None if len(value) <= _MAX_STOPS else f"there may be at most {_MAX_STOPS}"
        case "reasoning_effort":
            levels = model.reasoning_efforts
            return None if value in levels or not levels else f"it must be one of {', '.join(levels)}"
        case "reasoning_format":
            return None if value in _REASONING_FORMATS else f"it must be one of {', '.join(_REASONING_FORMATS)}"
        case "include_reasoning":
            return None if parameters.reasoning_format is None else "it excludes reasoning_format: send one of them"
        case _:
            return None
