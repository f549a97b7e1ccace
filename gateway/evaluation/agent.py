"""Runs cases with the gateway's agent loop, without a database."""

import asyncio
import time
from uuid import uuid4

import msgspec

from gateway.agent.loop import AgentLoop, LoopLimits
from gateway.agent.model_context import ModelContext, TurnContext
from gateway.agent.prompt import SystemPrompt
from gateway.agent.tasks.waits import TurnTaskWaits
from gateway.agent.tool_search import ToolSelector
from gateway.agent.transcript import Transcript
from gateway.config import Settings
from gateway.domain.errors import GatewayError
from gateway.domain.events import Event, ToolCallStarted, ToolFinished
from gateway.domain.messages import (
    Answer,
    JsonObject,
    Message,
    Parameters,
    PendingInput,
    Principal,
    Question,
    TurnRequest,
    Usage,
    text_block,
)
from gateway.evaluation.cases import Case, Suite
from gateway.evaluation.toolbox import CannedToolbox
from gateway.ports.model import Model, ModelCall, ModelCatalog, ModelInfo

_PRINCIPAL = Principal(user="evaluation")
_CANNOT_ASK = "Nobody can answer a question in an evaluation."


class CaseCall(msgspec.Struct, frozen=True):
    """A call that the model made, in order."""

    tool: str
    arguments: JsonObject | str


class CaseRun(msgspec.Struct, frozen=True):
    """Run of a case. `error` is set if the turn failed."""

    calls: tuple[CaseCall, ...]
    answer: str
    steps: int
    tokens: int
    cost_usd: float | None
    seconds: float
    error: str | None = None


class CaseTurn(TurnContext):
    """A turn in memory, of which only the transcript is kept."""

    def __init__(self, model: ModelInfo) -> None:
        self.transcript = Transcript()
        self.inputs = []
        self.tasks = TurnTaskWaits()
        self.calls: list[CaseCall] = []
        self.id, self.is_stored = uuid4(), False
        self._model = model

    def emit(self, event: Event) -> None:
        self.transcript.apply(event)
        if isinstance(event, ToolCallStarted):
            self.calls.append(CaseCall(event.tool, event.arguments))

    async def wait_until_durable(self) -> None: ...

    def require_lease(self) -> None: ...

    def on_accepted(self) -> None: ...

    def has_capacity(self) -> bool:
        return True

    async def wait_for_capacity(self) -> None: ...

    async def reserve_budget(self, call: ModelCall) -> None: ...

    async def settle_budget(self) -> None: ...

    def record_failed_usage(self, usage: Usage, cost_usd: float | None) -> None:
        self.transcript.add_usage(usage, cost_usd)

    def calculate_cost(self, usage: Usage) -> float | None:
        return self._model.calculate_cost(usage)

    async def ask_questions(self, call_id: str, pending_input: PendingInput) -> None:
        del pending_input
        self.emit(ToolFinished(call_id=call_id, outcome="denied", content=[text_block(_CANNOT_ASK)]))

    async def ask_inline(self, call_id: str, question: Question) -> Answer:
        del call_id, question
        return Answer("decline", by="gateway")

    async def withdraw_questions(self, call_id: str) -> None: ...


class CaseRunner:
    """Runs cases of a suite against a model."""

    def __init__(self, settings: Settings, suite: Suite, model: Model, catalog: ModelCatalog) -> None:
        self._settings = settings
        self._suite = suite
        self._model = model
        self._catalog = catalog
        self._limits = LoopLimits(
            steps=settings.agent_max_steps, tokens=settings.agent_max_tokens, parallel_calls=settings.tool_parallelism
        )

    async def run_case(self, case: Case, model: str, prompt: str | None) -> CaseRun:
        """Run a case once.

        A failure of the turn is part of the result.
        """
        started_at = time.perf_counter()
        info, _ = self._catalog.resolve(model)
        turn = CaseTurn(info)
        error: str | None = None
        try:
            async with asyncio.timeout(self._settings.agent_timeout):
                context, toolbox = self._build_context(case, info, prompt)
                await AgentLoop(self._model, toolbox, self._limits).run_turn(context, turn)
        except GatewayError as failure:
            error = f"{failure.code}: {failure.message}"
        except TimeoutError:
            error = f"turn_timeout: the turn exceeded {self._settings.agent_timeout:g} seconds."
        return CaseRun(
            calls=tuple(turn.calls),
            answer=turn.transcript.response,
            steps=turn.transcript.steps,
            tokens=turn.transcript.usage.total_tokens,
            cost_usd=turn.transcript.cost_usd,
            seconds=round(time.perf_counter() - started_at, 3),
            error=error,
        )

    def _build_context(self, case: Case, model: ModelInfo, prompt: str | None) -> tuple[ModelContext, CannedToolbox]:
        settings, toolbox = self._settings, CannedToolbox(self._suite, case)
        defaults = Parameters(
            temperature=settings.groq_temperature, top_p=settings.groq_top_p, max_tokens=settings.groq_max_tokens
        )
        parameters, _ = self._catalog.adapt_parameters(defaults, model, drop=True)
        message = Message("user", case.prompt)
        request = TurnRequest((message,), parameters=parameters, system=case.system)
        selector = ToolSelector(toolbox, max_tokens=settings.tool_token_budget, batches=settings.agent_batch_tool)
        selection, _ = selector.select(request, _PRINCIPAL, model)
        own_prompt = SystemPrompt(
            settings.agent_system_prompt if prompt is None else prompt, settings.system_prompt_policy
        )
        system_message = own_prompt.build_message(request, (*selection.tools, *selection.hidden), "")
        context = ModelContext(
            model=model.id,
            messages=(message,) if system_message is None else (system_message, message),
            tools=selection.tools,
            hidden=selection.hidden,
            tool_choice=None,
            parameters=parameters,
            principal=_PRINCIPAL,
        )
        return context, toolbox
