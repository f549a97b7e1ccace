"""`/api/v1/tools/definitions`: tools that admins define, forwarded to the tool server."""

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from gateway.api.deps import AuditLogDep, DefinitionsDep, PrincipalDep
from gateway.api.http.errors import ErrorBody
from gateway.domain.errors import McpServerError
from gateway.domain.messages import JsonObject, Principal
from gateway.ports.definitions import DefinitionForwarder
from gateway.store.audit import AuditStore
from gateway_runtime.http_tools.definitions import (
    NAME_PATTERN,
    DefinedTool,
    DefinitionCreate,
    DefinitionImport,
    DefinitionPatch,
    DefinitionPublish,
    DefinitionTest,
)

router = APIRouter(prefix="/api/v1/tools/definitions", tags=["tool definitions"])

DefinitionName = Annotated[str, Path(pattern=NAME_PATTERN)]
_ERRORS: dict[int | str, JsonObject] = {
    404: {"model": ErrorBody, "description": "There is no definition of this name"},
    409: {"model": ErrorBody, "description": "The name is taken, the revision is another one, or a secret is not set"},
    502: {"model": ErrorBody, "description": "The tool server did not answer"},
}


class SecretState(BaseModel):
    """Whether a secret is set for the origin of the definition's URL."""

    is_set: bool


class _DefinitionState(BaseModel):
    name: str
    state: Literal["draft", "published", "changed"]
    revision: int
    published_revision: int | None
    origin: str
    secrets: dict[str, SecretState]
    fault: str | None
    source: dict[str, Any] | None
    updated_by: str
    updated_at: datetime
    created_at: datetime


class DefinitionSummary(_DefinitionState):
    """A definition in a list.

    `changed`: hosts see an older revision. `fault`: why it cannot be used.
    """

    title: str | None
    description: str | None
    method: str
    url: str


class DefinitionView(_DefinitionState):
    """A definition. Secrets are never shown."""

    definition: DefinedTool


class DefinitionList(BaseModel):
    """All definitions, by name."""

    definitions: list[DefinitionSummary]


class DefinitionTestResult(BaseModel):
    """Text that a model would read."""

    text: str
    is_error: bool


class ImportedOperation(BaseModel):
    """An operation of an OpenAPI document, and what becomes of it.

    `changes` lists the changed fields, each with its old and new value. `notes` tell what was left out.
    """

    operation: str
    name: str | None
    action: Literal["add", "change", "keep", "skip", "remove", "lost"]
    reason: str | None = None
    changes: dict[str, list[Any]] = {}
    notes: list[str] = []


class ImportReport(BaseModel):
    """Changes of an import, made if `applied`.

    `secrets` are those that the definitions need, with what they are.
    """

    applied: bool
    document: str
    origin: str | None
    operations: list[ImportedOperation]
    secrets: dict[str, str]


@router.get("", summary="List the definitions of tools")
async def list_definitions(principal: PrincipalDep, definitions: DefinitionsDep) -> DefinitionList:
    """The tools that admins have defined, published or not."""
    return DefinitionList.model_validate(await definitions.forward(principal, "GET", "", None))


@router.post("", summary="Define a tool", status_code=201, responses=_ERRORS)
async def create_definition(
    body: DefinitionCreate, principal: PrincipalDep, definitions: DefinitionsDep, audit_log: AuditLogDep
) -> DefinitionView:
    """Make the draft of a tool that is an HTTP request.

    Models and hosts see it after it is published.
    """
    detail = {"method": body.method, "url": body.url, "secrets": sorted(body.secrets)}
    change = _Change(principal, "create", body.name, detail)
    return DefinitionView.model_validate(
        await _forward_change(definitions, audit_log, change, "POST", "", _encode(body))
    )


@router.post("/import", summary="Import an OpenAPI document", responses=_ERRORS)
async def import_definitions(
    body: DefinitionImport, principal: PrincipalDep, definitions: DefinitionsDep, audit_log: AuditLogDep
) -> ImportReport:
    """Make definitions from an OpenAPI 3 document, or update earlier ones.

    Without `apply` nothing changes: the answer shows what would.
    """
    if not body.apply:
        answer = await definitions.forward(principal, "POST", "/import", _encode(body))
        return ImportReport.model_validate(answer)
    detail: JsonObject = {
        "url": body.url,
        "operations": body.operations[:20],
        "publish": body.publish,
        "remove_missing": body.remove_missing,
        "secrets": sorted(body.secrets),
    }
    change = _Change(principal, "import", body.url or "document", detail)
    answer = await _forward_change(definitions, audit_log, change, "POST", "/import", _encode(body))
    return ImportReport.model_validate(answer)


@router.get("/{name}", summary="Get the definition of a tool", responses=_ERRORS)
async def get_definition(name: DefinitionName, principal: PrincipalDep, definitions: DefinitionsDep) -> DefinitionView:
    """The newest draft."""
    return DefinitionView.model_validate(await definitions.forward(principal, "GET", f"/{name}", None))


@router.patch("/{name}", summary="Change the definition of a tool", responses=_ERRORS)
async def change_definition(
    name: DefinitionName,
    body: DefinitionPatch,
    principal: PrincipalDep,
    definitions: DefinitionsDep,
    audit_log: AuditLogDep,
) -> DefinitionView:
    """Change fields of the draft.

    Secrets count at once. Another origin in the URL needs its secrets anew.
    """
    detail: JsonObject = {"fields": sorted(body.model_fields_set), "secrets": sorted(body.secrets)}
    detail |= {"url": body.url} if body.url else {}
    change = _Change(principal, "change", name, detail)
    answer = await _forward_change(definitions, audit_log, change, "PATCH", f"/{name}", _encode(body))
    return DefinitionView.model_validate(answer)


@router.delete("/{name}", summary="Delete the definition of a tool", status_code=204, responses=_ERRORS)
async def delete_definition(
    name: DefinitionName, principal: PrincipalDep, definitions: DefinitionsDep, audit_log: AuditLogDep
) -> None:
    """Delete the draft and the published tool.

    The secrets of an origin are deleted with its last definition.
    """
    await _forward_change(definitions, audit_log, _Change(principal, "delete", name, {}), "DELETE", f"/{name}", None)


@router.post("/{name}/test", summary="Test the definition of a tool", responses=_ERRORS)
async def run_definition(
    name: DefinitionName,
    body: DefinitionTest,
    principal: PrincipalDep,
    definitions: DefinitionsDep,
    audit_log: AuditLogDep,
) -> DefinitionTestResult:
    """Send the request of the draft once.

    A failure is a result with status 200.
    """
    change = _Change(principal, "test", name, {})
    answer = await _forward_change(definitions, audit_log, change, "POST", f"/{name}/test", _encode(body))
    return DefinitionTestResult.model_validate(answer)


@router.post("/{name}/publish", summary="Publish the definition of a tool", responses=_ERRORS)
async def publish_definition(
    name: DefinitionName,
    body: DefinitionPublish,
    principal: PrincipalDep,
    definitions: DefinitionsDep,
    audit_log: AuditLogDep,
) -> DefinitionView:
    """Let models and hosts see the draft."""
    change = _Change(principal, "publish", name, {"revision": body.revision})
    answer = await _forward_change(definitions, audit_log, change, "POST", f"/{name}/publish", _encode(body))
    return DefinitionView.model_validate(answer)


class _Change:
    """A change, as the audit log tells it."""

    def __init__(self, principal: Principal, action: str, subject: str, detail: JsonObject) -> None:
        self.principal = principal
        self.action = f"definition.{action}"
        self.subject = f"tool definition {subject}"
        self.detail = detail


async def _forward_change(
    definitions: DefinitionForwarder,
    audit_log: AuditStore,
    change: _Change,
    method: Literal["POST", "PATCH", "DELETE"],
    path: str,
    body: bytes | None,
) -> JsonObject:
    """Forward a change, and write its audit entry.

    A change whose outcome is unknown has one, too.
    """
    try:
        answer = await definitions.forward(change.principal, method, path, body)
    except McpServerError:
        detail = {**change.detail, "outcome": "unknown"}
        await audit_log.write_entry(change.principal.user, change.action, change.subject, detail)
        raise
    if "revision" in answer:
        change.detail["revision"] = answer["revision"]
    await audit_log.write_entry(change.principal.user, change.action, change.subject, change.detail)
    return answer


def _encode(body: BaseModel) -> bytes:
    return body.model_dump_json(exclude_unset=True).encode()
