"""Files and batches of the model's server, each with an owner."""

import asyncio
import re
import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import IO, Any, cast

import msgspec
import uuid_utils.compat as uuids

from gateway.common.concurrency import SupervisedTask, TaskSet
from gateway.common.logging import get_logger
from gateway.domain.errors import (
    GatewayError,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    NotFound,
    StorageUnavailable,
)
from gateway.domain.messages import JSON_DECODE_ERRORS, JsonObject, Principal, Usage
from gateway.domain.spending import RequestHold
from gateway.passthrough.batch_files import BATCH_PRICE, BatchEstimate, rewrite_batch_file
from gateway.passthrough.metering import read_tokens
from gateway.passthrough.multipart import MultipartBody
from gateway.passthrough.service import PassedRequest, PassThroughService
from gateway.ports.model import ModelCatalog
from gateway.ports.upstream import (
    PENDING_PREFIX,
    ObjectKind,
    RequestBudgets,
    RequestUsage,
    UpstreamAnswer,
    UpstreamObject,
    UpstreamObjects,
    UpstreamRequest,
)

log = get_logger(__name__)

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_MAX_OBJECT_BYTES = 256 * 1024
_MAX_LIST_BYTES = 4 * 1024 * 1024
_RECENT_BATCHES = "batches?limit=100"
_SERVER_ERROR = 500
_HOLD_SECONDS = 900.0
_FINAL = ("completed", "failed", "expired", "cancelled")
_CHECK_SECONDS = 300.0
_POLL_SECONDS = 60.0
_CLAIM_LIMIT = 20
_MAX_REFRESHES = 5
_STOP_SECONDS = 5.0
_SPOOL_BYTES = 1024 * 1024


class FileService:
    """Passes files and batches on, and knows their owners.

    Another user's object is not found. The usage of a batch replaces its reservation when it ends, which its owner's
    requests notice, or `task`.
    """

    def __init__(
        self, passing: PassThroughService, objects: UpstreamObjects, budgets: RequestBudgets, catalog: ModelCatalog
    ) -> None:
        self._passing = passing
        self._objects = objects
        self._budgets = budgets
        self._catalog = catalog
        self._creations = TaskSet("creation of batches", log_errors=False)
        self.task = SupervisedTask("usage of batches", self._settle_forever)

    async def stop(self) -> None:
        await self._creations.stop(_STOP_SECONDS)

    async def create_file(
        self, principal: Principal, body: MultipartBody, estimate: BatchEstimate | None
    ) -> JsonObject:
        """Upload a file; return the server's object.

        A client that disconnects meanwhile does not stop it: the file would have no owner.
        """
        pending = _make_pending(principal, "file", {}, None if estimate is None else msgspec.to_builtins(estimate))
        await self._objects.add(pending)
        try:
            created = await self._send(principal, "file.create", "POST", "files", content=body)
            file_id = _check_id(created.get("id"))
        except GatewayError:
            await self._objects.delete(pending)
            raise
        return await self._confirm(pending, file_id, created, principal)

    @asynccontextmanager
    async def rewrite_batch_file(self, file: IO[bytes]) -> AsyncGenerator[tuple[IO[bytes], BatchEstimate]]:
        """Check the input file of batches, and yield it rewritten."""
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as target:
            estimate = await asyncio.to_thread(rewrite_batch_file, file, target, self._catalog)
            yield target, estimate

    async def get(self, principal: Principal, kind: ObjectKind, object_id: str) -> JsonObject:
        """Return an object of the caller, as the server describes it now.

        Raises:
            NotFound: the caller has no such object.
        """
        item = await self._find(principal, kind, object_id)
        return (await self._refresh(item, principal)).body

    async def list_objects(self, principal: Principal, kind: ObjectKind, **options: Any) -> list[JsonObject]:
        """List objects of the caller; open batches are read anew."""
        items = await self._objects.list_objects(principal.user, kind, **options)
        slots = asyncio.Semaphore(_MAX_REFRESHES)

        async def read(item: UpstreamObject) -> JsonObject:
            if item.kind == "file" or item.is_settled:
                return item.body
            async with slots:
                try:
                    return (await self._refresh(item, principal)).body
                except GatewayError:
                    return item.body  # as it was last

        return list(await asyncio.gather(*map(read, items)))

    async def open_content(self, principal: Principal, file_id: str) -> AbstractAsyncContextManager[UpstreamAnswer]:
        """Return what opens the content of a file of the caller."""
        item = await self._find(principal, "file", file_id)
        request = UpstreamRequest(method="GET", path=f"files/{item.id}/content")
        return self._passing.open_answer(_describe(principal, "file.read", request, item.id))

    async def delete_file(self, principal: Principal, file_id: str) -> JsonObject:
        item = await self._find(principal, "file", file_id)
        try:
            answer = await self._send(principal, "file.delete", "DELETE", f"files/{item.id}", item.id)
        except NotFound:
            answer = {"id": item.id, "object": "file", "deleted": True}  # the server has deleted it by itself
        await self._objects.delete(item)
        return answer

    async def create_batch(self, principal: Principal, body: JsonObject) -> JsonObject:
        """Reserve the estimated cost of a batch, and send it.

        A client that disconnects meanwhile does not stop it: the batch would run without an owner.

        Raises:
            BudgetExceeded: the budgets do not leave enough.
            ModelNotFound: the caller may not use a model of the file.
            NotFound: the caller has no such file.
        """
        file = await self._find(principal, "file", str(body.get("input_file_id") or ""))
        if file.estimate is None:
            raise InvalidRequest("input_file_id: the file was not uploaded for batches.", param="input_file_id")
        estimate = msgspec.convert(file.estimate, BatchEstimate)
        if body.get("endpoint") != estimate.url:
            raise InvalidRequest(f"endpoint: the requests of the file are for {estimate.url}.", param="endpoint")
        for model in estimate.models:
            if not principal.can_use_model(model):
                raise ModelNotFound(f"The model {model[:200]!r} of the file does not exist.", param="input_file_id")
        created: list[JsonObject] = []
        creation = self._creations.spawn(self._send_batch(principal, body, file.estimate, estimate, created))
        await asyncio.shield(creation)
        return created[0]

    async def cancel_batch(self, principal: Principal, batch_id: str) -> JsonObject:
        item = await self._find(principal, "batch", batch_id)
        body = await self._send(principal, "batch.cancel", "POST", f"batches/{item.id}/cancel", item.id)
        return (await self._take_over(item, body)).body

    async def forget_user(self, user: str) -> None:
        """Cancel a user's batches and delete the files at the server.

        Raises:
            GatewayError: the server cannot be reached; what is left can be deleted by a repetition.
        """
        principal = Principal(user)
        for kind in ("batch", "file"):
            while items := await self._objects.list_objects(user, kind, limit=100):
                for item in items:
                    await self._forget(item, principal)
        await self._objects.delete_pending(user)

    async def _forget(self, item: UpstreamObject, principal: Principal) -> None:
        try:
            if item.kind == "file":
                await self._send(principal, "file.delete", "DELETE", f"files/{item.id}", item.id)
            elif not item.is_settled:
                refreshed = await self._refresh(item, principal)
                if refreshed.body.get("status") not in _FINAL:
                    await self._send(principal, "batch.cancel", "POST", f"batches/{item.id}/cancel", item.id)
        except NotFound:
            log.info("upstream_object_is_gone", kind=item.kind)
        await self._objects.delete(item)

    async def _send_batch(
        self,
        principal: Principal,
        body: JsonObject,
        stored_estimate: JsonObject,
        estimate: BatchEstimate,
        created: list[JsonObject],
    ) -> None:
        hold = RequestHold(uuid.UUID(int=uuids.uuid7().int), estimate.tokens, estimate.usd, _HOLD_SECONDS)
        is_held = await self._budgets.reserve_request(principal, hold, strict=True)
        pending = _make_pending(principal, "batch", body, stored_estimate, hold.id if is_held else None)
        await self._objects.add(pending)
        try:
            batch = await self._send(
                principal, "batch.create", "POST", "batches", json=body, detail={"estimated_tokens": estimate.tokens}
            )
            batch_id = _check_id(batch.get("id"))
        except GatewayError as error:
            if error.status < _SERVER_ERROR:  # else the server may have made it: `check_batch` looks for it
                await self._discard_pending(pending)
            raise
        created.append(await self._confirm(pending, batch_id, batch, principal))

    async def _confirm(
        self, pending: UpstreamObject, object_id: str, body: JsonObject, principal: Principal
    ) -> JsonObject:
        """Store the object that the server has made.

        If this fails, undo it there: its client does not learn its id.
        """
        item = msgspec.structs.replace(pending, id=object_id, body=body)
        try:
            await self._objects.confirm(pending, item)
        except GatewayError:
            log.warning("upstream_object_not_stored", kind=item.kind, id=item.id)
            if item.kind == "file":
                await self._send(principal, "file.delete", "DELETE", f"files/{item.id}", item.id)
            else:
                await self._send(principal, "batch.cancel", "POST", f"batches/{item.id}/cancel", item.id)
            raise
        return body

    async def _discard_pending(self, pending: UpstreamObject) -> None:
        await self._objects.delete(pending)
        if pending.hold_id is not None:
            await self._objects.delete_hold(pending.hold_id)

    async def _find_created(self, pending: UpstreamObject) -> None:
        """Look for a batch whose creation was interrupted.

        Its input file is its owner's, so batches of this file are too. Those that are known stay as they are.
        """
        async with self._passing.open_unrecorded(UpstreamRequest(method="GET", path=_RECENT_BATCHES)) as answer:
            listed = await _read_object(answer, _MAX_LIST_BYTES)
        entries = cast("list[JsonObject]", listed.get("data") if isinstance(listed.get("data"), list) else [])
        found = [
            msgspec.structs.replace(pending, id=_check_id(entry.get("id")), body=entry)
            for entry in entries
            if entry.get("input_file_id") == pending.body.get("input_file_id")
        ]
        added = await self._objects.confirm(pending, *found)
        if added:
            log.info("interrupted_batch_found", batches=added)
        else:
            await self._discard_pending(pending)

    async def _find(self, principal: Principal, kind: ObjectKind, object_id: str) -> UpstreamObject:
        if not _ID.fullmatch(object_id):
            raise NotFound(f"There is no {kind} {object_id[:80]!r}.")
        return await self._objects.get(principal.user, kind, object_id)

    async def _refresh(self, item: UpstreamObject, principal: Principal | None = None) -> UpstreamObject:
        """Read an object anew.

        Reads are not audited: `get` is polled.
        """
        path = f"{'files' if item.kind == 'file' else 'batches'}/{item.id}"
        request = UpstreamRequest(method="GET", path=path)
        async with self._passing.open_unrecorded(request) as answer:
            body = await _read_object(answer)
        return await self._take_over(item, body)

    async def _take_over(self, item: UpstreamObject, body: JsonObject) -> UpstreamObject:
        """Store the new state of an object.

        A batch that has ended is settled. Its files are not added again, because their owner may have deleted them.
        """
        known_files = _list_outputs(item.body) if item.is_settled else []
        item = msgspec.structs.replace(item, body=body)
        if item.kind == "batch":
            await self._objects.add(
                *(_make_output(item, file_id) for file_id in _list_outputs(body) if file_id not in known_files)
            )
            if body.get("status") in _FINAL and not item.is_settled:
                await self._objects.settle(item, list_batch_usage(item, self._catalog))
                item = msgspec.structs.replace(item, is_settled=True)
        await self._objects.update(item)
        return item

    async def _send(
        self,
        principal: Principal,
        action: str,
        method: str,
        path: str,
        subject: str = "",
        *,
        content: MultipartBody | None = None,
        json: JsonObject | None = None,
        detail: JsonObject | None = None,
    ) -> JsonObject:
        if content is not None:
            request = UpstreamRequest(method=method, path=path, content_type=content.content_type, body=content)
        elif json is not None:
            encoded = msgspec.json.encode(json)
            request = UpstreamRequest(method=method, path=path, content_type="application/json", body=encoded)
        else:
            request = UpstreamRequest(method=method, path=path)
        async with self._passing.open_answer(_describe(principal, action, request, subject, detail)) as answer:
            return await _read_object(answer)

    async def _settle_forever(self) -> None:
        """Settle batches that have ended, whose owners do not ask."""
        while True:
            try:
                for item in await self._objects.claim_open_batches(
                    limit=_CLAIM_LIMIT, older_than_seconds=_CHECK_SECONDS
                ):
                    await self.check_batch(item)
            except StorageUnavailable:
                log.warning("batches_not_checked")
            await asyncio.sleep(_POLL_SECONDS)

    async def check_batch(self, item: UpstreamObject) -> None:
        """Read a batch anew, and settle it if it has ended.

        A batch that the server has forgotten has used its estimate.
        """
        try:
            await (self._find_created(item) if item.is_pending else self._refresh(item))
        except NotFound:
            await self._objects.settle(item, list_batch_usage(item, self._catalog))
        except StorageUnavailable:
            raise
        except GatewayError as error:  # of this batch alone: the others are checked
            log.warning("batch_not_checked", code=error.code)


def list_batch_usage(item: UpstreamObject, catalog: ModelCatalog) -> list[RequestUsage]:
    """Return the usage of an ended batch, by model.

    Without the server's figures, it is the share of the estimate that belongs to the completed requests.
    """
    estimate = msgspec.convert(item.estimate, BatchEstimate)
    share, reported = _get_completed_share(item.body), item.body.get("usage")
    told = read_tokens(cast("dict[str, object]", reported)) if isinstance(reported, dict) else None
    if len(estimate.models) != 1:
        told = None
    used: list[RequestUsage] = []
    for name, model in estimate.models.items():
        usage = told or Usage(*(int(share * count) for count in msgspec.structs.astuple(model.usage)[:3]))
        cost = catalog.get_model_info(name).calculate_cost(usage)
        used.append(
            RequestUsage(
                id=uuid.uuid5(uuid.NAMESPACE_URL, f"{item.id}/{name}"),
                principal=Principal(item.owner, key=item.key),
                endpoint="/v1/batches",
                action="batch.end",
                subject=item.id,
                model=name,
                status="completed",
                usage=usage,
                cost_usd=None if cost is None else round(cost * BATCH_PRICE, 9),
            )
        )
    return used


def _get_completed_share(body: JsonObject) -> float:
    counts = body.get("request_counts")
    if body.get("status") == "failed":
        return 0.0
    match counts:
        case {"completed": int(completed), "total": int(total)} if total > 0:
            return max(0, min(completed, total)) / total
        case _:
            return 1.0


def _list_outputs(batch: JsonObject) -> list[str]:
    """List the ids of the files that a batch has written."""
    named = (batch.get(name) for name in ("output_file_id", "error_file_id"))
    return [file_id for file_id in named if isinstance(file_id, str) and _ID.fullmatch(file_id)]


def _make_output(batch: UpstreamObject, file_id: str) -> UpstreamObject:
    body = {"id": file_id, "object": "file", "purpose": "batch_output", "filename": f"{file_id}.jsonl", "bytes": 0}
    body["created_at"] = batch.body.get("created_at") or 0
    return UpstreamObject(id=file_id, kind="file", owner=batch.owner, key=batch.key, body=body)


def _describe(
    principal: Principal, action: str, request: UpstreamRequest, subject: str, detail: JsonObject | None = None
) -> PassedRequest:
    return PassedRequest(
        principal=principal, action=f"upstream.{action}", request=request, subject=subject, detail=detail or {}
    )


def _make_pending(
    principal: Principal,
    kind: ObjectKind,
    body: JsonObject,
    estimate: JsonObject | None,
    hold_id: uuid.UUID | None = None,
) -> UpstreamObject:
    return UpstreamObject(
        id=f"{PENDING_PREFIX}{uuids.uuid7().hex}",
        kind=kind,
        owner=principal.user,
        key=principal.key,
        body=body,
        estimate=estimate,
        hold_id=hold_id,
    )


async def _read_object(answer: UpstreamAnswer, max_bytes: int = _MAX_OBJECT_BYTES) -> JsonObject:
    body = bytearray()
    async for data in answer.iterate_bytes():
        body += data
        if len(body) > max_bytes:
            raise ModelError("The model's server sent an object that is too large.")
    try:
        return msgspec.json.decode(bytes(body), type=JsonObject)
    except JSON_DECODE_ERRORS:
        raise ModelError("The model's server did not send an object.") from None


def _check_id(value: object) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ModelError("The model's server sent an object without a valid id.")
    return value
