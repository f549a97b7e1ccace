"""The published tools of this process, reloaded at each change."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from mcp.types import CallToolResult, TextContent, Tool
from pydantic import ValidationError

from gateway_runtime.background.tasks import SupervisedTask
from gateway_runtime.background.waits import Backoff, wait_or_poll
from gateway_runtime.http_tools.definitions import DefinedTool
from gateway_runtime.postgres.connections import ConnectionTimeouts, PostgresConnector
from gateway_runtime.postgres.errors import is_database_error
from tools_server.common.database import DatabaseUnavailable
from tools_server.http_tools.answers import ShownAnswer, show_answer
from tools_server.http_tools.compiled import CompiledDefinition
from tools_server.http_tools.errors import CallFailed, DefinitionInvalid
from tools_server.http_tools.redaction import SecretRedactor
from tools_server.http_tools.secrets import SecretCipher
from tools_server.http_tools.sender import HttpSender
from tools_server.http_tools.store import CHANNEL, DefinitionStore, SecretKey

log = structlog.stdlib.get_logger(__name__)

_POLL_SECONDS = 30.0
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.2, 5.0
_FIRST_LOAD_SECONDS = 2.0
_LISTENER_TIMEOUTS = ConnectionTimeouts(connect=5.0, statement=5.0, lock=3.0, silence=10.0)


class DefinitionCatalog:
    """The published definitions, in memory.

    A message of Postgres is a hint to reload them; a lost one costs at most `_POLL_SECONDS`. While the database is
    unavailable, the tools that were loaded last stay.
    """

    def __init__(
        self,
        store: DefinitionStore,
        cipher: SecretCipher,
        sender: HttpSender,
        listener_url: str,
        on_change: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._cipher = cipher
        self._sender = sender
        self._listener_url = listener_url
        self._on_change = on_change
        self._tools: dict[str, CompiledDefinition] = {}
        self._secrets: dict[SecretKey, bytes] = {}
        self._listed: list[Tool] = []
        self._version: tuple[object, ...] | None = None
        self._reloading = asyncio.Lock()
        self._has_tried = asyncio.Event()
        self._has_tried.set()
        self._changed = asyncio.Event()
        self._task = SupervisedTask("tool definitions", self._stay_current, max_backoff_seconds=_MAX_BACKOFF_SECONDS)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Keep the catalog current inside of the block."""
        self._has_tried.clear()
        self._task.start()
        try:
            yield
        finally:
            await self._task.stop()

    async def list_tools(self) -> list[Tool]:
        """List the published tools, after the first attempt to load them."""
        await wait_or_poll(self._has_tried, _FIRST_LOAD_SECONDS)
        return self._listed

    def find(self, name: str) -> CompiledDefinition | None:
        return self._tools.get(name)

    async def find_loaded(self, name: str) -> CompiledDefinition | None:
        """Find a published tool, after the first attempt to load them.

        Hosts that know a tool call it right after a restart.
        """
        if name not in self._tools:
            await wait_or_poll(self._has_tried, _FIRST_LOAD_SECONDS)
        return self.find(name)

    async def call(self, compiled: CompiledDefinition, arguments: dict[str, Any]) -> CallToolResult:
        """Call a published tool. Its failure is a result, too."""
        try:
            shown = await self.send(compiled, arguments, self._secrets)
        except CallFailed as error:
            shown = ShownAnswer(str(error), True)
        return CallToolResult(content=[TextContent(type="text", text=shown.text)], is_error=shown.is_error)

    async def send(
        self, compiled: CompiledDefinition, arguments: dict[str, Any], stored: dict[SecretKey, bytes]
    ) -> ShownAnswer:
        """Send the request of a definition, and show its answer.

        Raises:
            CallFailed: the arguments are wrong, or no answer arrived.
        """
        secrets: dict[str, str] = {}
        for name in compiled.secret_names:
            encrypted = stored.get((compiled.origin, name))
            secret = None if encrypted is None else self._cipher.decrypt(encrypted)
            if secret is None:
                reason = "is not set" if encrypted is None else "was stored with another TOOLS_ENCRYPTION_KEY"
                raise CallFailed(f"The secret {name!r} of this tool {reason}. An admin must set it.")
            secrets[name] = secret
        await compiled.check_arguments(arguments)
        redactor = SecretRedactor(secrets)
        request = compiled.build_request(arguments, secrets)
        definition = compiled.definition
        answer = await self._sender.send(request, redactor, timeout_seconds=definition.timeout_seconds)
        log.info("defined_tool_called", tool=definition.name, status=answer.status)
        return await asyncio.to_thread(show_answer, answer, definition.result, redactor)

    async def reload(self) -> None:
        """Load the published definitions, and announce a changed list.

        Raises:
            DatabaseUnavailable: the database is unavailable.
        """
        async with self._reloading:
            version = await self._store.get_version()
            if version == self._version:
                return
            state = await self._store.load_state()
            tools: dict[str, CompiledDefinition] = {}
            for definition in state.published:
                if (compiled := _compile(definition)) is not None:
                    tools[compiled.definition.name] = compiled
                await asyncio.sleep(0)  # a thousand of them take a second
            self._tools, self._secrets, self._version = tools, state.secrets, version
            listed = [compiled.to_tool() for compiled in self._tools.values()]
            has_changed, self._listed = listed != self._listed, listed
        if has_changed:
            log.info("tool_definitions_changed", tools=len(listed))
            await self._on_change()

    async def _stay_current(self) -> None:
        """Listen for changes, again after each loss of the database."""
        backoff = Backoff(_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS)
        while True:
            try:
                await self._listen()
                backoff.reset()
            except Exception as error:
                if not isinstance(error, DatabaseUnavailable) and not is_database_error(error):
                    raise
            finally:
                self._has_tried.set()
            await asyncio.sleep(backoff.next_delay())

    def _on_notification(self, *_message: object) -> None:
        self._changed.set()

    async def _listen(self) -> None:
        """Reload at each message, until the connection is closed."""
        connection = await PostgresConnector(self._listener_url, _LISTENER_TIMEOUTS).connect(command_seconds=5)
        try:
            await connection.add_listener(CHANNEL, self._on_notification)
            connection.add_termination_listener(lambda _: self._changed.set())
            while not connection.is_closed():
                self._changed.clear()
                await self.reload()
                self._has_tried.set()
                await wait_or_poll(self._changed, _POLL_SECONDS)
                await connection.execute("SELECT 1")
        finally:
            connection.terminate()


def _compile(definition: dict[str, Any]) -> CompiledDefinition | None:
    try:
        return CompiledDefinition(DefinedTool.model_validate(definition))
    except (ValidationError, DefinitionInvalid) as error:
        # A newer release may have stored it.
        log.warning("tool_definition_unusable", tool=str(definition.get("name"))[:64], error=type(error).__name__)
        return None
