"""Pass-through to the model's server, with permissions, budgets and audit."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import uuid_utils.compat as uuids

from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import GatewayError, InvalidRequest, ModelNotFound, StorageInternalError, StorageUnavailable
from gateway.domain.messages import JsonObject, Principal
from gateway.domain.spending import RequestHold
from gateway.passthrough.metering import MeteredUsage, UsageMeter
from gateway.passthrough.model_names import is_model_name
from gateway.ports.model import ModelCatalog, ModelInfo
from gateway.ports.upstream import (
    RequestBudgets,
    RequestLedger,
    RequestUsage,
    UpstreamAnswer,
    UpstreamApi,
    UpstreamRequest,
)

log = get_logger(__name__)

_HOLD_MARGIN_SECONDS = 60.0
_STOP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class PassedRequest:
    """A request to pass on.

    `action` names it in the audit log. `meter` reads what it used, of `model`; without one, it costs nothing.
    """

    principal: Principal
    action: str
    request: UpstreamRequest
    model: str = ""
    meter: UsageMeter | None = None
    subject: str = ""
    detail: JsonObject = field(default_factory=dict[str, object])


class _MeteredAnswer(UpstreamAnswer):
    """An answer whose bytes pass its meter. `is_whole`: its end was read."""

    def __init__(self, answer: UpstreamAnswer, meter: UsageMeter | None) -> None:
        self._answer = answer
        self._meter = meter
        self.is_whole = False

    @property
    def content_type(self) -> str:
        return self._answer.content_type

    async def iterate_bytes(self) -> AsyncGenerator[bytes]:
        async for data in self._answer.iterate_bytes():
            if self._meter is not None:
                self._meter.feed(data)
            yield data
        self.is_whole = True


class PassThroughService:
    """Passes requests on to the model's server.

    A request reserves its estimated cost first. At its end, also one that fails or is cancelled, its usage and an entry
    of the audit log are stored.
    """

    def __init__(
        self,
        api: UpstreamApi,
        catalog: ModelCatalog,
        budgets: RequestBudgets,
        ledger: RequestLedger,
        *,
        timeout_seconds: float,
    ) -> None:
        self._api = api
        self._catalog = catalog
        self._budgets = budgets
        self._ledger = ledger
        self._timeout_seconds = timeout_seconds
        self._records = TaskSet("usage of passed-on requests")

    async def stop(self) -> None:
        await self._records.stop(_STOP_SECONDS)

    def check_model(self, principal: Principal, model: str) -> str:
        """Return the name of a model for its server.

        Raises:
            InvalidRequest: the request names no model.
            ModelNotFound: the caller may not use the model.
        """
        if not model:
            raise InvalidRequest("model: is required here.", param="model")
        if not is_model_name(model) or not principal.can_use_model(model):
            raise ModelNotFound(f"The model {model[:200]!r} does not exist.", param="model")
        return model

    @asynccontextmanager
    async def open_answer(self, passed: PassedRequest) -> AsyncGenerator[UpstreamAnswer]:
        """Send a request, and yield its answer once that begins.

        Raises:
            BudgetExceeded: a budget of the caller is used up or reserved.
            GatewayError: the server refuses the request, or cannot be reached; see `UpstreamApi.open`.
        """
        record_id, info = UUID(int=uuids.uuid7().int), self._find_info(passed.model)
        hold_id = await self._reserve(passed, record_id, info)
        outcome = _Outcome("cancelled", "client_disconnected")
        answer: _MeteredAnswer | None = None
        try:
            async with self._api.open(passed.request) as inner:
                answer = _MeteredAnswer(inner, passed.meter)
                yield answer
            outcome = _Outcome("completed")
        except GatewayError as error:
            outcome = _Outcome("failed", error.code)
            raise
        except Exception:
            outcome = _Outcome("failed", GatewayError.code)
            raise
        finally:
            used = self._measure(passed, answer, outcome, info, record_id)
            recording = self._records.spawn(self._record(used, hold_id))
            if outcome.status != "cancelled":
                await asyncio.shield(recording)  # before the caller sees the end of the answer

    def open_unrecorded(self, request: UpstreamRequest) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Send a request that costs nothing and is not audited; see `UpstreamApi.open`."""
        return self._api.open(request)

    def _find_info(self, model: str) -> ModelInfo | None:
        return self._catalog.get_model_info(model) if model else None

    async def _reserve(self, passed: PassedRequest, record_id: UUID, info: ModelInfo | None) -> UUID | None:
        if passed.meter is None or info is None:
            return None
        estimate = passed.meter.estimate
        hold = RequestHold(
            record_id,
            estimate.usage.total_tokens,
            _calculate_cost(info, estimate) or 0.0,
            self._timeout_seconds + _HOLD_MARGIN_SECONDS,
        )
        return record_id if await self._budgets.reserve_request(passed.principal, hold) else None

    def _measure(
        self,
        passed: PassedRequest,
        answer: _MeteredAnswer | None,
        outcome: "_Outcome",
        info: ModelInfo | None,
        record_id: UUID,
    ) -> RequestUsage:
        """Return what a request used.

        A request that was cancelled, or whose answer broke off, has used its estimate.
        """
        measured = MeteredUsage()
        if passed.meter is not None and answer is not None:
            measured = passed.meter.read(answer.content_type) if answer.is_whole else passed.meter.estimate
        elif passed.meter is not None and outcome.status == "cancelled":
            measured = passed.meter.estimate
        return RequestUsage(
            id=record_id,
            principal=passed.principal,
            endpoint=f"/v1/{passed.request.path.partition('/')[0] if passed.subject else passed.request.path}",
            action=passed.action,
            subject=passed.subject or f"/v1/{passed.request.path}",
            model=passed.model,
            status=outcome.status,
            usage=measured.usage,
            cost_usd=_calculate_cost(info, measured) if info is not None else None,
            error_code=outcome.error_code,
            detail=passed.detail,
        )

    async def _record(self, used: RequestUsage, hold_id: UUID | None) -> None:
        try:
            await self._ledger.record(used, hold_id)
        except (StorageUnavailable, StorageInternalError) as error:
            log.warning("request_usage_not_recorded", action=used.action, code=error.code)


@dataclass(frozen=True)
class _Outcome:
    status: str
    error_code: str | None = None


def _calculate_cost(info: ModelInfo, measured: MeteredUsage) -> float | None:
    if info.price_hour is not None:
        return round(measured.audio_seconds / 3_600 * info.price_hour, 9)
    return info.calculate_cost(measured.usage)
