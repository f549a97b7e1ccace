"""The operations of admins on definitions."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from gateway_runtime.http_tools.definitions import DefinedTool, DefinitionCreate, DefinitionPatch
from tools_server.common.database import DatabaseUnavailable
from tools_server.http_tools.catalog import DefinitionCatalog
from tools_server.http_tools.compiled import CompiledDefinition
from tools_server.http_tools.errors import CallFailed, DefinitionConflict, DefinitionInvalid
from tools_server.http_tools.models import HttpTool
from tools_server.http_tools.secrets import SecretCipher
from tools_server.http_tools.store import DefinitionChange, DefinitionStore, SecretKey

JsonObject = dict[str, Any]


class DefinitionService:
    """Makes, tests, changes, publishes and deletes definitions."""

    def __init__(
        self, store: DefinitionStore, catalog: DefinitionCatalog, cipher: SecretCipher, reserved_names: frozenset[str]
    ) -> None:
        self.store = store
        self.catalog = catalog
        self._cipher = cipher
        self.reserved_names = reserved_names

    async def list_definitions(self) -> JsonObject:
        """List all definitions, without their schemas."""
        tools, secrets = await self.store.list_tools()
        views: list[JsonObject] = []
        for tool in tools:
            views.append(_summarize(tool, secrets))
            await asyncio.sleep(0)  # a thousand of them take a second
        return {"definitions": views}

    async def get(self, name: str) -> JsonObject:
        """Return a definition."""
        tool, secrets = await self.store.get_tool(name)
        return _describe(tool, set(secrets))

    async def create(self, body: DefinitionCreate, by: str) -> JsonObject:
        """Make a definition. Hosts do not see it yet."""
        compiled = self.compile(DefinedTool.model_validate(body.model_dump(exclude={"secrets"})))
        await self.store.add([DefinitionChange(compiled)], self.encrypt(compiled, body.secrets), by)
        return await self._show_change(compiled.definition.name)

    async def change(self, name: str, body: DefinitionPatch, by: str) -> JsonObject:
        """Change fields of a draft.

        A secret counts at once, also for the published definition.
        """
        tool, _ = await self.store.get_tool(name)
        changes = body.model_dump(exclude={"secrets", "revision"}, exclude_unset=True)
        try:
            definition = DefinedTool.model_validate({**tool.draft, **changes})
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            raise DefinitionInvalid(".".join(map(str, problem["loc"]))[:200], problem["msg"]) from None
        compiled = self.compile(definition)
        secrets = self.encrypt(compiled, body.secrets)
        await self.store.change(name, DefinitionChange(compiled), secrets, by, body.revision or tool.revision)
        return await self._show_change(name)

    async def test(self, name: str, arguments: JsonObject) -> JsonObject:
        """Call the draft. The failure of a call is an answer, too."""
        tool, secrets = await self.store.get_tool(name)
        compiled = self.compile(DefinedTool.model_validate(tool.draft))
        try:
            shown = await self.catalog.send(compiled, arguments, secrets)
        except CallFailed as error:
            return {"text": str(error), "is_error": True}
        return {"text": shown.text, "is_error": shown.is_error}

    async def publish(self, name: str, revision: int | None, by: str) -> JsonObject:
        """Let hosts see the draft.

        Raises:
            DefinitionConflict: a secret of it is not set.
        """
        tool, secrets = await self.store.get_tool(name)
        if missing := _list_missing(tool, set(secrets)):
            message = f"The secret {missing[0]!r} is not set for {tool.origin}: secrets belong to an origin."
            raise DefinitionConflict(message, "secrets")
        self.compile(DefinedTool.model_validate(tool.draft))
        await self.store.publish(name, by, revision or tool.revision)
        return await self._show_change(name)

    async def delete(self, name: str, by: str) -> None:
        """Delete a definition; hosts no longer see it."""
        await self.store.delete(name, by)
        await self.reload_after_change()

    async def reload_after_change(self) -> None:
        """Let this process see the change at once.

        Raises:
            DatabaseUnavailable: in doubt, because the change was saved.
        """
        try:
            await self.catalog.reload()
        except DatabaseUnavailable:
            raise DatabaseUnavailable(in_doubt=True) from None

    async def _show_change(self, name: str) -> JsonObject:
        await self.reload_after_change()
        try:
            return await self.get(name)
        except DatabaseUnavailable:
            raise DatabaseUnavailable(in_doubt=True) from None

    def compile(self, definition: DefinedTool) -> CompiledDefinition:
        """Check a definition.

        Raises:
            DefinitionInvalid, DefinitionConflict: a field is not valid, or the name is a built-in tool's.
        """
        if definition.name in self.reserved_names:
            raise DefinitionConflict(f"{definition.name!r} is the name of a built-in tool.")
        return CompiledDefinition(definition)

    def encrypt(self, compiled: CompiledDefinition, secrets: Mapping[str, str]) -> dict[SecretKey, bytes]:
        """Encrypt the secrets of a definition, for its origin."""
        for name, secret in secrets.items():
            if name not in compiled.secret_names:
                raise DefinitionInvalid(f"secrets.{name}", f"no template names {{secret.{name}}}")
            if any(ord(character) < 32 or ord(character) == 127 for character in secret):
                raise DefinitionInvalid(f"secrets.{name}", "has control characters")
        return {(compiled.origin, name): self._cipher.encrypt(secret) for name, secret in secrets.items()}


def _summarize(tool: HttpTool, secrets: set[SecretKey]) -> JsonObject:
    view = _describe(tool, secrets)
    del view["definition"]
    return (
        view
        | {field: tool.draft.get(field) for field in ("title", "description", "url")}
        | {"method": tool.draft.get("method", "GET")}
    )


def _describe(tool: HttpTool, secrets: set[SecretKey]) -> JsonObject:
    state = "draft" if tool.published is None else "changed" if tool.published != tool.draft else "published"
    try:
        definition = DefinedTool.model_validate(tool.draft)
        names, fault = sorted(CompiledDefinition(definition).secret_names), None
        fields = definition.model_dump(mode="json")
    except (ValidationError, DefinitionInvalid):  # a newer release may have stored it
        names, fault, fields = [], "This release cannot use the definition.", tool.draft
    return {
        "name": tool.name,
        "state": state,
        "revision": tool.revision,
        "published_revision": tool.published_revision,
        "origin": tool.origin,
        "secrets": {name: {"is_set": (tool.origin, name) in secrets} for name in names},
        "fault": fault,
        "source": tool.source,
        "updated_by": tool.updated_by,
        "updated_at": None if tool.updated_at is None else tool.updated_at.isoformat(),
        "created_at": None if tool.created_at is None else tool.created_at.isoformat(),
        "definition": fields,
    }


def _list_missing(tool: HttpTool, secrets: set[SecretKey]) -> list[str]:
    names = CompiledDefinition(DefinedTool.model_validate(tool.draft)).secret_names
    return sorted(name for name in names if (tool.origin, name) not in secrets)
