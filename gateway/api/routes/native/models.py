"""`/api/v1/models`: the catalogue."""

from fastapi import APIRouter
from pydantic import BaseModel

from gateway.api.deps import ModelsDep, PrincipalDep, SettingsDep

router = APIRouter(prefix="/api/v1", tags=["models"])


class ModelView(BaseModel):
    """Windows in tokens, prices in USD per million tokens.

    `tools`: calls functions natively, else it is told of them in the prompt; `parallel_calls`: several in one step;
    `not_taken`: parameters that it refuses.
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


class ModelList(BaseModel):
    default: str
    simulated: bool
    models: list[ModelView]


@router.get("/models", summary="The models on offer")
async def list_models(principal: PrincipalDep, models: ModelsDep, settings: SettingsDep) -> ModelList:
    """What may stand in `model`, and which one is used where nothing stands there."""
    return ModelList(
        default=settings.default_model,
        simulated=settings.groq_simulated,
        models=[
            ModelView.model_validate(model, from_attributes=True)
            for model in models.list_models()
            if principal.can_use_model(model.id)
        ],
    )
