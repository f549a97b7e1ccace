"""Typed dependencies of the routes: parts of the application, and the caller.

`composition/gateway.py` sets the parts as attributes of `app.state`. A route names the parts that it uses as
parameters of a type `…Dep`. The chat routes call `get_turn_service(request)` and its siblings instead. See
docs/adr/0013.
"""

from collections.abc import Coroutine
from typing import Annotated, TypeVar

import msgspec
from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from starlette.datastructures import Headers

from gateway.agent.service import TurnService
from gateway.api.http.uploads import UploadReader
from gateway.api.security.authentication import PRINCIPAL_SCOPE_KEY, Authenticator
from gateway.common.concurrency import TaskRegistry, WorkInterrupted
from gateway.config import Settings
from gateway.domain.errors import ClientGone
from gateway.domain.messages import JsonObject, Principal
from gateway.passthrough.files import FileService
from gateway.passthrough.service import PassThroughService
from gateway.ports.code import Sandbox
from gateway.ports.definitions import DefinitionForwarder
from gateway.ports.model import Model, ModelCatalog
from gateway.ports.observer import MetricsPage
from gateway.ports.servers import ServerAdmin
from gateway.ports.tools import ServerStatus, Toolbox
from gateway.ports.toolsets import ToolsetAdmin
from gateway.store.admin.audit_chain import AuditChain
from gateway.store.admin.operations import OperationsStore
from gateway.store.admin.user_data import UserDataStore
from gateway.store.api_keys import KeyStore
from gateway.store.audit import AuditStore
from gateway.store.conversations import ConversationStore
from gateway.store.health import StorageHealth
from gateway.store.history import HistoryStore
from gateway.store.lists.item_deletion import ItemDeletionStore
from gateway.store.lists.turn_contents import TurnContentStore
from gateway.store.mcp_servers import ServerStore
from gateway.store.questions import QuestionStore
from gateway.store.turns import TurnStore
from gateway.store.usage import UsageStore
from gateway.store.usage_report import UsageReports
from gateway.store.webhooks.queue import WebhookStore
from gateway_runtime.cached_value import CachedValue
from gateway_runtime.connections.disconnects import get_disconnect

T = TypeVar("T")


def get_turn_service(request: Request) -> TurnService:
    return request.app.state.turn_service


def get_turn_store(request: Request) -> TurnStore:
    return request.app.state.turns


def get_toolbox(request: Request) -> Toolbox:
    return request.app.state.toolbox


def get_principal(request: Request) -> Principal:
    """Return the authenticated caller, with the request headers that MCP servers receive."""
    return add_forwarded_headers(request.scope[PRINCIPAL_SCOPE_KEY], request.headers, get_toolbox(request))


def add_forwarded_headers(principal: Principal, headers: Headers, toolbox: Toolbox) -> Principal:
    """Return the principal with the request headers that any MCP server receives."""
    if not (names := toolbox.get_forwarded_headers()):
        return principal
    forwarded = {name: value for name in names if (value := headers.get(name)) is not None}
    return msgspec.structs.replace(principal, headers=forwarded)


def list_visible_servers(toolbox: Toolbox, principal: Principal) -> list[ServerStatus]:
    """Return the servers that the caller may use.

    With a toolset, these are the servers of its tools.
    """
    statuses = [status for status in toolbox.list_server_statuses() if principal.can_use_server(status.name)]
    if principal.toolset is None:
        return statuses
    names = {spec.server for spec in toolbox.list_specs(principal)}
    return [status for status in statuses if status.name in names]


async def _resolve_principal(request: Request) -> Principal:
    # A coroutine, like every dependency here: FastAPI would run a plain function in a thread.
    return get_principal(request)


def _depends_on_part(name: str) -> Dependency:
    async def resolve(request: Request) -> object:
        return getattr(request.app.state, name)

    return Depends(resolve)


PrincipalDep = Annotated[Principal, Depends(_resolve_principal)]
ApiKeysDep = Annotated[KeyStore, _depends_on_part("keys")]
AuthenticatorDep = Annotated[Authenticator, _depends_on_part("auth")]
AuditChainDep = Annotated[AuditChain, _depends_on_part("audit_chain")]
AuditLogDep = Annotated[AuditStore, _depends_on_part("audit")]
ConversationsDep = Annotated[ConversationStore, _depends_on_part("conversations")]
DefinitionsDep = Annotated[DefinitionForwarder, _depends_on_part("definitions")]
FilesDep = Annotated[FileService | None, _depends_on_part("files")]
HistoryDep = Annotated[HistoryStore, _depends_on_part("history")]
IdentityJwksDep = Annotated[JsonObject, _depends_on_part("identity_jwks")]
MetricsDep = Annotated[MetricsPage | None, _depends_on_part("metrics")]
OperationsDep = Annotated[OperationsStore, _depends_on_part("operations")]
ItemDeletionsDep = Annotated[ItemDeletionStore, _depends_on_part("item_deletions")]
ModelDep = Annotated[Model, _depends_on_part("model")]
ModelHealthDep = Annotated[CachedValue[str | None], _depends_on_part("model_health")]
CatalogDep = Annotated[ModelCatalog, _depends_on_part("catalog")]
PassThroughDep = Annotated[PassThroughService, _depends_on_part("pass_through")]
QuestionsDep = Annotated[QuestionStore, _depends_on_part("questions")]
SandboxDep = Annotated[Sandbox, _depends_on_part("sandbox")]
ServerAdminDep = Annotated[ServerAdmin, _depends_on_part("registry")]
StorageHealthDep = Annotated[StorageHealth, _depends_on_part("storage_health")]
ServersDep = Annotated[ServerStore, _depends_on_part("servers")]
WebhooksDep = Annotated[WebhookStore, _depends_on_part("webhooks")]
SettingsDep = Annotated[Settings, _depends_on_part("settings")]
StartTimeDep = Annotated[float, _depends_on_part("started_at")]
TasksDep = Annotated[TaskRegistry, _depends_on_part("tasks")]
ToolsetsDep = Annotated[ToolsetAdmin, _depends_on_part("toolsets")]
ToolboxDep = Annotated[Toolbox, _depends_on_part("toolbox")]
TurnContentsDep = Annotated[TurnContentStore, _depends_on_part("turn_contents")]
TurnServiceDep = Annotated[TurnService, _depends_on_part("turn_service")]
TurnsDep = Annotated[TurnStore, _depends_on_part("turns")]
UploadsDep = Annotated[UploadReader, _depends_on_part("uploads")]
UserDataDep = Annotated[UserDataStore, _depends_on_part("user_data")]
UsageDep = Annotated[UsageStore, _depends_on_part("usage")]
UsageReportsDep = Annotated[UsageReports, _depends_on_part("usage_reports")]


async def run_until_disconnect(request: Request, work: Coroutine[object, object, T]) -> T:
    """Await `work`, and cancel it if the client disconnects.

    Raises:
        ClientGone: the client disconnected.
    """
    try:
        return await get_disconnect(request.scope).interrupt(work)
    except WorkInterrupted:
        raise ClientGone from None
