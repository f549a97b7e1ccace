"""Catalogue of models.

It merges Groq's models of autumn 2026 with the server's own list.
"""

import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

import msgspec

from gateway.domain.errors import ModelNotFound, UnsupportedParameter
from gateway.domain.messages import JsonObject, Parameters
from gateway.ports.model import PLAIN_SUFFIX, ModelCatalog, ModelInfo

_REASONING_LEVELS = ("low", "medium", "high")
_EXTREME_EFFORTS = {"minimal": 0, "xhigh": -1, "max": -1}
"""Efforts that few models know, and the position of the nearest level."""
_PENALTIES = ("top_k", "repetition_penalty", "frequency_penalty", "presence_penalty")
_GPT_OSS_UNSUPPORTED = (*_PENALTIES, "reasoning_format")
_COMPOUND_UNSUPPORTED = (*_PENALTIES, "reasoning_effort", "reasoning_format", "include_reasoning")
_CONTEXT_WINDOW, _MAX_OUTPUT_TOKENS = 131_072, 65_536
_DEFAULT_CONTEXT_WINDOW, _DEFAULT_MAX_OUTPUT_TOKENS = 131_072, 16_384

_GPT_OSS_120B = ModelInfo(
    id="openai/gpt-oss-120b",
    context_window=_CONTEXT_WINDOW,
    max_output_tokens=_MAX_OUTPUT_TOKENS,
    status="production",
    owned_by="OpenAI",
    price_in=0.15,
    price_out=0.60,
    price_cached=0.075,
    reasoning_efforts=_REASONING_LEVELS,
    parallel_calls=False,
    strict_schema=True,
    not_taken=_GPT_OSS_UNSUPPORTED,
    input_modalities=("text",),
)
_GPT_OSS_20B = msgspec.structs.replace(
    _GPT_OSS_120B, id="openai/gpt-oss-20b", price_in=0.075, price_out=0.30, price_cached=0.0375
)
_GPT_OSS_SAFEGUARD = msgspec.structs.replace(
    _GPT_OSS_20B,
    id="openai/gpt-oss-safeguard-20b",
    status="preview",
    price_cached=None,
    strict_schema=False,
)
_QWEN = ModelInfo(
    id="qwen/qwen3.8-27b",
    context_window=_CONTEXT_WINDOW,
    max_output_tokens=16_384,
    status="preview",
    owned_by="Alibaba Cloud",
    price_in=0.80,
    price_out=4.00,
    price_cached=0.40,
    reasoning_efforts=("none", "default"),
    strict_schema=True,
    not_taken=_PENALTIES,
    input_modalities=("text", "image"),
)
_COMPOUND = ModelInfo(
    id="groq/compound",
    context_window=_CONTEXT_WINDOW,
    max_output_tokens=8_192,
    status="system",
    owned_by="Groq",
    tools=False,
    not_taken=_COMPOUND_UNSUPPORTED,
    input_modalities=("text",),
)
_COMPOUND_MINI = msgspec.structs.replace(_COMPOUND, id="groq/compound-mini")
GROQ_MODELS = (_GPT_OSS_120B, _GPT_OSS_20B, _QWEN, _GPT_OSS_SAFEGUARD, _COMPOUND, _COMPOUND_MINI)

_PRICES_PER_HOUR: Mapping[str, float] = {"whisper-large-v3": 0.111, "whisper-large-v3-turbo": 0.04}
"""Groq's prices of transcriptions, in USD per hour of audio."""

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

# Clients send these defaults, which change nothing: rejecting them would break those clients.
_NO_OP_VALUES: Mapping[str, float] = {
    "top_k": 0,
    "repetition_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
}
_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
_MAX_STOP_SEQUENCES = 4
_MAX_MODALITIES = 16
_NO_PARAMETERS = Parameters()
_REASONING_FORMATS = ("parsed", "raw", "hidden")


class _ListedModel(msgspec.Struct):
    """An entry of a server's list of models."""

    id: str
    active: bool | None = None
    owned_by: str | None = None
    context_window: int | None = None
    max_model_len: int | None = None
    max_completion_tokens: int | None = None
    input_modalities: Any = None
    architecture: Any = None
    capabilities: Any = None

    def read_modalities(self) -> tuple[str, ...]:
        """Return the modalities that the server tells; empty: none."""
        for owner in (self.input_modalities, _get_member(self.architecture, "input_modalities")):
            if isinstance(owner, list):
                names = cast("list[object]", owner)
                return tuple(name for name in names[:_MAX_MODALITIES] if isinstance(name, str))
        vision = _get_member(self.capabilities, "vision")
        return () if not isinstance(vision, bool) else ("text", "image") if vision else ("text",)


def _get_member(value: object, name: str) -> object:
    return cast("JsonObject", value).get(name) if isinstance(value, dict) else None


class Catalog(ModelCatalog):
    """The available models.

    The server's list overrides the built-in data, field by field. With `open_ended`, any model may be requested until
    the list has arrived, and retired ids have no successors. `unsupported_parameters` applies to models without
    built-in data. `name_map` has globs of other names, such as `claude-*`, and the models in their place.
    """

    def __init__(
        self,
        models: tuple[ModelInfo, ...] = GROQ_MODELS,
        *,
        aliases: bool = True,
        open_ended: bool = False,
        unsupported_parameters: tuple[str, ...] = _PENALTIES,
        name_map: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self._models = {model.id: model for model in models}
        self._aliases = aliases and not open_ended
        self._open_ended = open_ended
        self._unsupported_parameters = unsupported_parameters
        self._name_map = name_map

    def update_models(self, entries: list[JsonObject]) -> None:
        """Merge the server's list.

        Entries that are not models, and inactive ones, are ignored.
        """
        for entry in entries:
            try:
                model = msgspec.convert(entry, _ListedModel, strict=False)
            except msgspec.ValidationError:
                continue
            if model.active is not False:
                self._models[model.id] = self._merge_model(self._models.get(model.id), model)

    def _merge_model(self, existing: ModelInfo | None, entry: _ListedModel) -> ModelInfo:
        default = existing or self._make_default_info(entry.id, owned_by=entry.owned_by)
        window = entry.context_window or entry.max_model_len or default.context_window
        limit = entry.max_completion_tokens or default.max_output_tokens
        if existing is None and not entry.max_completion_tokens:
            limit = min(limit, window)
        told = {
            "context_window": entry.context_window or entry.max_model_len,
            "max_output_tokens": entry.max_completion_tokens,
        }
        assumed = tuple(name for name in default.assumed if not told[name])
        return msgspec.structs.replace(
            default,
            context_window=window,
            max_output_tokens=limit,
            assumed=assumed,
            input_modalities=entry.read_modalities() or default.input_modalities,
        )

    def _make_default_info(self, model: str, owned_by: str | None = None) -> ModelInfo:
        return ModelInfo(
            id=model,
            context_window=_DEFAULT_CONTEXT_WINDOW,
            max_output_tokens=_DEFAULT_MAX_OUTPUT_TOKENS,
            owned_by=owned_by,
            not_taken=self._unsupported_parameters,
            price_hour=_PRICES_PER_HOUR.get(model),
            assumed=("context_window", "max_output_tokens"),
        )

    def list_models(self) -> list[ModelInfo]:
        return list(self._models.values())

    def get_model_info(self, model: str) -> ModelInfo:
        """See `ModelCatalog.get_model_info`."""
        return self._models.get(model) or self._make_default_info(model)

    def split_plain(self, model: str) -> tuple[str, bool]:
        """See `ModelCatalog.split_plain`. An id in the server's list is never plain."""
        name = model.removesuffix(PLAIN_SUFFIX)
        return (name, True) if name and name != model and model not in self._models else (model, False)

    def resolve(self, model: str) -> tuple[ModelInfo, tuple[str, ...]]:
        """See `ModelCatalog.resolve`. An id in the server's list is never an alias."""
        if (info := self._models.get(model)) is not None:
            return info, ()
        if self._open_ended and not self._models:
            return self._make_default_info(model), ()
        mapped = next((target for glob, target in self._name_map if fnmatchcase(model, glob)), None)
        if mapped is not None:
            return self.get_model_info(mapped), (f"The model {model[:200]!r} is {mapped!r} here.",)
        successor = RETIRED_MODELS.get(model)
        if successor is None or self._open_ended:
            available = ", ".join(self._models)
            raise ModelNotFound(f"There is no model {model[:200]!r}. Available: {available[:2_000]}.", param="model")
        if not self._aliases:
            raise ModelNotFound(f"The model {model!r} is retired. Its successor is {successor!r}.", param="model")
        return self._models[successor], (f"The model {model!r} is retired: {successor!r} is used instead.",)

    def adapt_parameters(
        self, parameters: Parameters, model: ModelInfo, *, drop: bool
    ) -> tuple[Parameters, tuple[str, ...]]:
        """See `ModelCatalog.adapt_parameters`. Values that have no effect are dropped without a warning."""
        if parameters == _NO_PARAMETERS:
            return parameters, ()
        parameters, warnings = _map_effort(parameters, model)
        cleared_fields: dict[str, None] = {}
        for name in parameters.__struct_fields__:
            value = getattr(parameters, name)
            if value is None:
                continue
            if name in model.not_taken and value == _NO_OP_VALUES.get(name):
                cleared_fields[name] = None
                continue
            correction = _describe_correction(name, parameters, model)
            if correction is None:
                continue
            if not drop:
                raise UnsupportedParameter(
                    f"The model {model.id!r} does not support {name}={str(value)[:100]}: {correction}.", param=name
                )
            cleared_fields[name] = None
            warnings.append(f"{name} was left out: the model {model.id!r} does not support it ({correction}).")
        return msgspec.structs.replace(parameters, **cleared_fields), tuple(warnings)

    def fit_defaults(self, defaults: Parameters, model: ModelInfo) -> Parameters:
        """See `ModelCatalog.fit_defaults`. A model without known levels of reasoning gets none."""
        if defaults == _NO_PARAMETERS:
            return defaults
        fitting, _ = self.adapt_parameters(defaults, model, drop=True)
        if model.reasoning_efforts:
            return fitting
        return msgspec.structs.replace(fitting, reasoning_effort=None, reasoning_format=None, include_reasoning=None)


def _map_effort(parameters: Parameters, model: ModelInfo) -> tuple[Parameters, list[str]]:
    """Replace an unknown effort by the nearest level, with a warning."""
    effort, levels = parameters.reasoning_effort, model.reasoning_efforts or _REASONING_LEVELS
    if effort not in _EXTREME_EFFORTS or effort in levels or "reasoning_effort" in model.not_taken:
        return parameters, []
    nearest = levels[_EXTREME_EFFORTS[effort]]
    warning = f"reasoning_effort={effort} was replaced by {nearest}: the model {model.id!r} has no such level."
    return msgspec.structs.replace(parameters, reasoning_effort=nearest), [warning]


def _describe_correction(name: str, parameters: Parameters, model: ModelInfo) -> str | None:
    """Return how to correct an unsupported parameter that is set.

    None if the model supports its value.
    """
    if name in model.not_taken:
        return "leave it out"
    if name in _RANGES:
        low, high = _RANGES[name]
        return None if low <= getattr(parameters, name) <= high else f"it must be from {low:g} to {high:g}"
    match name:
        case "max_tokens":
            limit = model.max_output_tokens
            if "max_output_tokens" in model.assumed:
                limit = sys.maxsize if "context_window" in model.assumed else model.context_window
            return None if 1 <= (parameters.max_tokens or 0) <= limit else f"it must be from 1 to {limit}"
        case "stop":
            sequences = len(parameters.stop or ())
            return None if sequences <= _MAX_STOP_SEQUENCES else f"there may be at most {_MAX_STOP_SEQUENCES}"
        case "reasoning_effort":
            levels = model.reasoning_efforts
            is_allowed = parameters.reasoning_effort in levels or not levels
            return None if is_allowed else f"it must be one of {', '.join(levels)}"
        case "reasoning_format":
            is_allowed = parameters.reasoning_format in _REASONING_FORMATS
            return None if is_allowed else f"it must be one of {', '.join(_REASONING_FORMATS)}"
        case "include_reasoning":
            return None if parameters.reasoning_format is None else "it excludes reasoning_format: send one of them"
        case _:
            return None
