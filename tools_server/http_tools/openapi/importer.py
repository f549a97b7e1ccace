"""Import of documents: selection, names, differences, application."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from gateway_runtime.http_tools.definitions import DefinedTool, DefinitionImport
from tools_server.http_tools.compiled import BuiltRequest, CompiledDefinition, find_origin
from tools_server.http_tools.errors import CallFailed, DefinitionConflict, DefinitionError, DefinitionInvalid
from tools_server.http_tools.models import HttpTool
from tools_server.http_tools.openapi.document import (
    MAX_JSON_BYTES,
    DocumentInvalid,
    OpenApiDocument,
    Unsupported,
    parse_document,
)
from tools_server.http_tools.openapi.names import make_unique, to_tool_name
from tools_server.http_tools.openapi.operations import MappedOperation, Operation, OperationMapper, list_operations
from tools_server.http_tools.redaction import SecretRedactor
from tools_server.http_tools.sender import HttpSender
from tools_server.http_tools.service import DefinitionService
from tools_server.http_tools.store import DefinitionChange, SecretKey

MAX_OPERATIONS = 500
_FETCH_SECONDS = 30.0
_KEPT_FIELDS = ("title", "result", "annotations", "timeout_seconds")
"""Fields that an import leaves as an admin has set them."""

JsonObject = dict[str, Any]


@dataclass
class _Plan:
    """The changes of an import."""

    added: list[DefinitionChange] = field(default_factory=list[DefinitionChange])
    changed: dict[str, tuple[DefinitionChange, int]] = field(default_factory=dict[str, tuple[DefinitionChange, int]])
    kept: list[CompiledDefinition] = field(default_factory=list[CompiledDefinition])
    removed: list[str] = field(default_factory=list[str])
    operations: list[JsonObject] = field(default_factory=list[JsonObject])
    secrets: dict[str, str] = field(default_factory=dict[str, str])

    def list_compiled(self) -> list[CompiledDefinition]:
        changes = [*self.added, *(change for change, _ in self.changed.values())]
        return [*(change.compiled for change in changes), *self.kept]


class DocumentImporter:
    """Imports OpenAPI documents for admins."""

    def __init__(self, service: DefinitionService, sender: HttpSender) -> None:
        self._service = service
        self._sender = sender

    async def run(self, body: DefinitionImport, by: str) -> JsonObject:
        """Report what a document changes, and change it if `apply` is set.

        Raises:
            DefinitionError: the document cannot be read, or a change is not possible.
        """
        document = await self._read_document(body)
        tools, _ = await self._service.store.list_tools()
        source = body.url or document.title
        plan = await self._plan(document, body, tools, source)
        origin = self._find_origin(document, body, plan)
        secrets = self._encrypt(body, plan, origin)
        if body.apply:
            await self._service.store.apply_import(
                plan.added, plan.changed, plan.removed, secrets, by, publish=body.publish
            )
            await self._service.reload_after_change()
        return {
            "applied": body.apply,
            "document": source,
            "origin": origin,
            "operations": plan.operations,
            "secrets": plan.secrets,
        }

    async def _read_document(self, body: DefinitionImport) -> OpenApiDocument:
        if body.document is not None:
            return await asyncio.to_thread(parse_document, body.document, body.url)
        if body.url is None:
            raise DocumentInvalid("give the document or its url")
        find_origin(body.url)
        request = BuiltRequest("GET", body.url, {"Accept": "application/json, application/yaml, */*;q=0.5"}, None)
        try:
            answer = await self._sender.send(
                request, SecretRedactor({}), timeout_seconds=_FETCH_SECONDS, max_bytes=MAX_JSON_BYTES
            )
        except CallFailed as error:
            raise DefinitionError(422, "invalid_request", f"url: {error}", "url") from None
        if answer.status != 200 or answer.is_cut:
            problem = "it is too large" if answer.is_cut else f"the server answered with status {answer.status}"
            raise DefinitionError(422, "invalid_request", f"url: {problem}", "url")
        return await asyncio.to_thread(parse_document, answer.body.decode(errors="replace"), body.url)

    async def _plan(
        self, document: OpenApiDocument, body: DefinitionImport, tools: Sequence[HttpTool], source: str
    ) -> _Plan:
        plan = _Plan()
        selected = [operation for operation in list_operations(document) if _is_selected(operation, body.operations)]
        if len(selected) > MAX_OPERATIONS:
            raise DocumentInvalid(
                f"{len(selected):,} operations are selected, more than {MAX_OPERATIONS}: choose fewer"
            )
        known = {tool.source["operation"]: tool for tool in tools if tool.source and tool.source["document"] == source}
        taken = {tool.name for tool in tools} | self._service.reserved_names
        for operation in selected:
            tool = known.get(operation.key)
            name = tool.name if tool else make_unique(to_tool_name(body.prefix, _suggest_name(operation)), taken)
            taken.add(name)
            self._plan_operation(plan, document, body, operation, name, tool, source)
            await asyncio.sleep(0)  # a large document takes seconds
        self._plan_lost(plan, document, body, known)
        return plan

    def _plan_operation(
        self,
        plan: _Plan,
        document: OpenApiDocument,
        body: DefinitionImport,
        operation: Operation,
        name: str,
        tool: HttpTool | None,
        source: str,
    ) -> None:
        view: JsonObject = {"operation": operation.key, "name": name, "action": "skip", "changes": {}, "notes": []}
        plan.operations.append(view)
        try:
            mapped = self._map(document, body, operation, name)
            draft = {} if tool is None else tool.draft
            kept = {field: draft[field] for field in _KEPT_FIELDS if field in draft}
            definition = DefinedTool.model_validate({**mapped.definition.model_dump(), **kept})
            compiled = self._service.compile(definition)
        except (Unsupported, DefinitionInvalid, DefinitionConflict) as error:
            view |= {"name": None if tool is None else tool.name, "reason": str(error)}
            return
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            view |= {"name": None, "reason": f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"[:500]}
            return
        view["notes"] = mapped.notes
        plan.secrets |= mapped.secrets
        change = DefinitionChange(compiled, {"document": source, "operation": operation.key})
        if tool is None:
            view["action"] = "add"
            plan.added.append(change)
        elif changes := _compare(DefinedTool.model_validate(tool.draft), definition):
            view |= {"action": "change", "changes": changes}
            plan.changed[name] = (change, tool.revision)
        else:
            view["action"] = "keep"
            plan.kept.append(compiled)

    def _map(
        self, document: OpenApiDocument, body: DefinitionImport, operation: Operation, name: str
    ) -> MappedOperation:
        server = body.server_url or document.find_server(operation.node, operation.item)
        if server is None:
            raise DefinitionError(
                422, "invalid_request", "server_url: the document names no server with a host", "server_url"
            )
        return OperationMapper(document, operation, server).map(name)

    def _plan_lost(
        self, plan: _Plan, document: OpenApiDocument, body: DefinitionImport, known: dict[str, HttpTool]
    ) -> None:
        """Plan what becomes of definitions whose operation the document no longer has."""
        present = {operation.key for operation in list_operations(document)}
        for key, tool in known.items():
            if key not in present:
                action = "remove" if body.remove_missing else "lost"
                view: JsonObject = {"operation": key, "name": tool.name, "action": action, "changes": {}, "notes": []}
                plan.operations.append({**view, "reason": "the document no longer has it"})
                if body.remove_missing:
                    plan.removed.append(tool.name)

    def _find_origin(self, document: OpenApiDocument, body: DefinitionImport, plan: _Plan) -> str | None:
        """Return the origin of the secrets.

        The origin is that of the document's own server, or of the one that is given.
        """
        server = body.server_url or document.find_server()
        if server is None:
            compiled = plan.list_compiled()
            return compiled[0].origin if compiled else None
        return find_origin(server)

    def _encrypt(self, body: DefinitionImport, plan: _Plan, origin: str | None) -> dict[SecretKey, bytes]:
        """Encrypt the secrets for one origin.

        A document cannot direct them to another one.
        """
        encrypted: dict[SecretKey, bytes] = {}
        for name, value in body.secrets.items():
            users = [one for one in plan.list_compiled() if one.origin == origin and name in one.secret_names]
            if not users:
                raise DefinitionInvalid(f"secrets.{name}", f"no operation at {origin} needs it")
            encrypted |= self._service.encrypt(users[0], {name: value})
        return encrypted


def _suggest_name(operation: Operation) -> str:
    return operation.operation_id or f"{operation.method}{operation.path}"


def _is_selected(operation: Operation, patterns: Sequence[str]) -> bool:
    names = (operation.operation_id or "", operation.key)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _compare(old: DefinedTool, new: DefinedTool) -> dict[str, list[Any]]:
    """Return the changed fields, with their old and new values."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    return {name: [before[name], after[name]] for name in after if before[name] != after[name]}
