"""`/api/v1/models`: the model catalog."""

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.api.deps import CatalogDep, PrincipalDep, SettingsDep

router = APIRouter(prefix="/api/v1", tags=["models"])


class ModelView(BaseModel):
    """Model of the catalog.

    Windows are in tokens, prices in USD per million tokens. `tools`: the model supports tool calls natively; else the
    prompt describes the tools. `parallel_calls`: it can make several calls in one step. `not_taken`: parameters that it
    does not support. `input_modalities`: such as text and image; empty: unknown.
    """

    id: str
    status: str
    owned_by: str | None
    context_window: int
    max_output_tokens: int
    price_in: float | None
    price_out: float | None
    price_cached: float | None
    reasoning_efforts: list[str]
    tools: bool
    parallel_calls: bool
    strict_schema: bool
    not_taken: list[str]
    input_modalities: list[str]


class ModelList(BaseModel):
    """Available models. `simulated`: a built-in simulator answers instead of a model."""

    default: str
    simulated: bool
    models: list[ModelView]


@router.get("/models", summary="List the models")
async def list_models(principal: PrincipalDep, catalog: CatalogDep, settings: SettingsDep) -> ModelList:
    """The models that you may use, and the default model."""
    return ModelList(
        default=settings.default_model,
        simulated=settings.groq_simulated,
        models=[
            ModelView.model_validate(model, from_attributes=True)
            for model in catalog.list_models()
            if principal.can_use_model(model.id)
        ],
    )
