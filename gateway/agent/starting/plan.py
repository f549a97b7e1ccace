"""Resolves requests, and plans the tools and history of turns."""

from functools import partial

import msgspec

from gateway.agent.prompt import PreparedContext, PromptBuilder
from gateway.agent.starting.images import ImagePolicy
from gateway.agent.structured_output import OutputSchema
from gateway.agent.tool_search import ToolSelection, ToolSelector, check_client_tools
from gateway.agent.turn import ActiveTurn
from gateway.domain.caller_token import JWT_KEY
from gateway.domain.errors import Forbidden
from gateway.domain.messages import Parameters, Principal, TurnRequest
from gateway.domain.toolsets import bind_toolset
from gateway.ports.model import ModelCatalog, ModelInfo


class TurnPlan(msgspec.Struct, frozen=True):
    """Tools and context of a turn.

    A turn without a history has its context built later.
    """

    selection: ToolSelection
    warnings: tuple[str, ...] = ()
    prepared: PreparedContext | None = None
    is_takeover: bool = False


class TurnPlanner:
    """Resolves requests and plans their turns."""

    def __init__(
        self,
        models: ModelCatalog,
        tools: ToolSelector,
        prompts: PromptBuilder,
        default_parameters: Parameters,
        images: ImagePolicy,
    ) -> None:
        self._images = images
        self._models = models
        self._tools = tools
        self._prompts = prompts
        self._default_parameters = default_parameters

    async def plan_turn(self, turn: ActiveTurn) -> TurnPlan:
        """Select the tools of a new turn, and load its history.

        Raises:
            StorageUnavailable: the history cannot be read.
        """
        selection, warnings = self._tools.select(turn.record.request, turn.principal, turn.model)
        prepared = await self._prompts.prepare_context(turn.record, turn.principal, turn.model, selection)
        if prepared is not None:
            warnings = (*warnings, *prepared.window.warnings)
        return TurnPlan(selection, tuple(warnings), prepared)

    def plan_takeover(self, turn: ActiveTurn) -> TurnPlan:
        """Select the tools of a turn that another worker began."""
        return TurnPlan(self._tools.select(turn.record.request, turn.principal, turn.model)[0], is_takeover=True)

    async def complete_takeover(self, turn: ActiveTurn, plan: TurnPlan) -> TurnPlan:
        """Add the tools that the user's own token opens at this worker."""
        if not plan.is_takeover or turn.principal.key != JWT_KEY:
            return plan
        await self._tools.connect_user(turn.principal)
        return self.plan_takeover(turn)

    async def connect_user(self, principal: Principal) -> None:
        """See `Toolbox.connect_user`."""
        await self._tools.connect_user(principal)

    async def resolve_request(
        self, request: TurnRequest, principal: Principal
    ) -> tuple[ModelInfo, TurnRequest, tuple[str, ...]]:
        """Return the model, the request with adapted parameters, and warnings.

        Raises:
            GatewayError: the model, a parameter, a tool or the response format cannot be served to this principal.
        """
        name, is_plain = self._models.split_plain(request.model)
        model, model_warnings = self._models.resolve(name)
        if request.direct_call is None and not principal.can_use_model(model.id):
            raise Forbidden(f"Your key does not allow the model {model.id!r}.", param="model")
        parameters, parameter_warnings = self._models.adapt_parameters(
            request.parameters, model, drop=request.drop_unsupported
        )
        defaults = self._models.fit_defaults(self._default_parameters, model)
        tools, parameters = () if is_plain else request.tools, parameters.with_defaults(defaults)
        principal = bind_toolset(principal, request.toolset)
        await self._tools.connect_user(principal)
        toolset_warnings = self._tools.check_toolset(principal)
        request = msgspec.structs.replace(
            request, model=name, tools=tools, parameters=parameters, toolset=principal.toolset
        )
        if request.response_format is not None:
            await OutputSchema.prepare(request.response_format)
        check_client_tools(request.client_tools)
        self._tools.check_choice(request, principal)
        image_warnings = self._images.check(request, model, partial(self._list_seeing, principal))
        warnings = (*model_warnings, *parameter_warnings, *image_warnings)
        return model, request, warnings if tools == () else (*warnings, *toolset_warnings)

    def _list_seeing(self, principal: Principal) -> list[str]:
        """List the models that see images, and that the caller may use."""
        models = self._models.list_models()
        return [model.id for model in models if model.sees_images and principal.can_use_model(model.id)]

    async def count_tokens(self, request: TurnRequest, principal: Principal) -> int:
        """Estimate the tokens of a prompt without its conversation."""
        model, request, _ = await self.resolve_request(request, principal)
        selection, _ = self._tools.select(request, principal, model)
        return await self._prompts.count_tokens(request, principal, model, selection)
