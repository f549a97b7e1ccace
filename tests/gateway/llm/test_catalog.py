"""The catalogue: aliases, the server's list and unsupported parameters."""

from typing import Any

import pytest

from gateway.domain.errors import ModelNotFound, UnsupportedParameter
from gateway.domain.messages import Parameters
from gateway.llm.catalog import Catalog

OSS, QWEN, COMPOUND = "openai/gpt-oss-120b", "qwen/qwen3.8-27b", "groq/compound"


@pytest.mark.parametrize(
    ("model", "parameters", "allowed"),
    [
        (OSS, {"temperature": 2.1}, "from 0 to 2"),
        (OSS, {"temperature": -0.1}, "from 0 to 2"),
        (OSS, {"top_p": 1.5}, "from 0 to 1"),
        (OSS, {"max_tokens": 0}, "from 1 to 65536"),
        (OSS, {"max_tokens": 65_537}, "from 1 to 65536"),
        (QWEN, {"max_tokens": 16_385}, "from 1 to 16384"),
        (OSS, {"stop": ("a", "b", "c", "d", "e")}, "at most 4"),
        (OSS, {"reasoning_effort": "none"}, "one of low, medium, high"),
        (QWEN, {"reasoning_effort": "high"}, "one of none, default"),
        (COMPOUND, {"reasoning_effort": "low"}, "leave it out"),
        (OSS, {"reasoning_format": "parsed"}, "leave it out"),
        (QWEN, {"reasoning_format": "loud"}, "one of parsed, raw, hidden"),
        (QWEN, {"include_reasoning": True, "reasoning_format": "raw"}, "excludes reasoning_format"),
        (OSS, {"frequency_penalty": 0.5}, "leave it out"),
        (OSS, {"presence_penalty": 0.5}, "leave it out"),
        (OSS, {"top_k": 5}, "leave it out"),
        (OSS, {"repetition_penalty": 1.1}, "leave it out"),
    ],
)
def test_unsupported_parameter_is_rejected_by_name_or_dropped_with_a_warning(
    model: str, parameters: dict[str, Any], allowed: str
) -> None:
    catalog = Catalog()
    name = next(iter(parameters))
    with pytest.raises(UnsupportedParameter) as caught:
        catalog.adapt_parameters(Parameters(**parameters), catalog.get_model_info(model), drop=False)
    assert caught.value.param == name
    assert all(part in caught.value.message for part in (name, model, allowed))
    adapted, (warning,) = catalog.adapt_parameters(Parameters(**parameters), catalog.get_model_info(model), drop=True)
    assert getattr(adapted, name) is None
    assert name in warning


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (OSS, {"temperature": 0.0, "top_p": 1.0, "max_tokens": 65_536, "stop": ("a",) * 4, "seed": 1}),
        (OSS, {"reasoning_effort": "high", "include_reasoning": False}),
        (QWEN, {"reasoning_effort": "none", "reasoning_format": "hidden", "parallel_tool_calls": True}),
    ],
)
def test_supported_parameters_are_unchanged(model: str, parameters: dict[str, Any]) -> None:
    catalog = Catalog()
    assert catalog.adapt_parameters(Parameters(**parameters), catalog.get_model_info(model), drop=False) == (
        Parameters(**parameters),
        (),
    )


def test_parameter_without_effect_is_dropped_silently() -> None:
    catalog = Catalog()
    parameters = Parameters(top_k=0, repetition_penalty=1, frequency_penalty=0, presence_penalty=0)
    assert catalog.adapt_parameters(parameters, catalog.get_model_info(OSS), drop=False) == (Parameters(), ())


def test_server_list_overrides_the_catalog_but_keeps_its_prices() -> None:
    catalog = Catalog()
    catalog.update_models(
        [
            {"id": OSS, "context_window": 200_000, "max_completion_tokens": 1_000},
            {"id": "new/model", "owned_by": "Someone", "context_window": 8_192},
            {"id": "off/model", "active": False},
        ]
    )
    model = catalog.get_model_info(OSS)
    assert (model.context_window, model.max_output_tokens, model.price_in) == (200_000, 1_000, 0.15)
    assert catalog.resolve("new/model")[0].owned_by == "Someone"
    with pytest.raises(ModelNotFound):
        catalog.resolve("off/model")


def test_invalid_entry_of_the_server_list_is_ignored() -> None:
    catalog = Catalog((), open_ended=True)
    catalog.update_models(
        [{"object": "model"}, {"id": "odd", "context_window": "wide"}, {"id": "good", "context_window": "8192"}]
    )
    assert [(model.id, model.context_window) for model in catalog.list_models()] == [("good", 8_192)]


def test_retired_model_is_replaced_by_its_successor_unless_aliases_are_off() -> None:
    model, (warning,) = Catalog().resolve("llama-3.3-70b-versatile")
    assert (model.id, "retired" in warning) == (OSS, True)
    with pytest.raises(ModelNotFound, match="successor"):
        Catalog(aliases=False).resolve("llama-3.3-70b-versatile")


def test_models_of_another_server_are_those_that_it_lists() -> None:
    catalog = Catalog((), open_ended=True, unsupported_parameters=())
    assert catalog.resolve("anything")[0].id == "anything"
    catalog.update_models([{"id": "llama3.2", "max_model_len": 4_096}])
    assert catalog.resolve("llama3.2")[0].context_window == 4_096
    assert catalog.adapt_parameters(Parameters(top_k=5), catalog.get_model_info("llama3.2"), drop=False) == (
        Parameters(top_k=5),
        (),
    )
    with pytest.raises(ModelNotFound, match=r"llama3\.2"):
        catalog.resolve("llama-3.3-70b-versatile")
