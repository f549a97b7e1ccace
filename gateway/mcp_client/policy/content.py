"""Checks of tool input and output.

They limit the nesting depth, redact and sanitize.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.common.sanitize import sanitize_text, sanitize_value
from gateway.domain.errors import McpServerError
from gateway.domain.messages import (
    Answer,
    JsonObject,
    PendingInput,
    Principal,
    Question,
    StoredQuestion,
    ToolResult,
    text_block,
)
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.ports.tools import CallObserver, HostExchange, ItemKind, Toolbox, ToolCallRequest
from gateway_runtime.json_schema.validation import MAX_DEPTH, exceeds_depth
from gateway_runtime.redaction.redactor import Redactor

_IDENTIFIERS = ("server", "uri", "uriTemplate", "prompt")
"""Fields of items that requests must repeat exactly."""


class ArgumentDepthLimit(ToolboxWrapper):
    """Refuses arguments that are nested too deeply to process."""

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        if exceeds_depth(request.arguments) or exceeds_depth(request.meta):
            message = f"The arguments are nested more than {MAX_DEPTH} deep: make them flatter."
            return ToolResult("error", [text_block(message)])
        return await self._toolbox.call_tool(request)


class RedactingToolbox(ToolboxWrapper):
    """Redacts arguments, and the answers of users, before servers get them."""

    def __init__(self, toolbox: Toolbox, redactor: Redactor) -> None:
        super().__init__(toolbox)
        self._redactor = redactor

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        redacted_request = msgspec.structs.replace(
            request,
            arguments=self._redactor.redact_value(request.arguments),
            meta=self._redactor.redact_value(request.meta),
            observer=request.observer and _RedactingObserver(request.observer, self._redactor),
            answers=self._redact_answers(request.answers),
        )
        return await self._toolbox.call_tool(redacted_request)

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        redacted = self._redactor.redact_value(arguments)
        return await self._toolbox.get_prompt(name, redacted, principal, server, self._redact_exchange(exchange))

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        return await self._toolbox.read_resource(uri, principal, server, self._redact_exchange(exchange))

    def _redact_exchange(self, exchange: HostExchange | None) -> HostExchange | None:
        return exchange and msgspec.structs.replace(
            exchange, answers=self._redact_answers(exchange.answers), meta=self._redactor.redact_value(exchange.meta)
        )

    def _redact_answers(self, answers: Sequence[StoredQuestion]) -> list[StoredQuestion]:
        return [
            msgspec.structs.replace(stored, answer=stored.answer and _redact_answer(stored.answer, self._redactor))
            for stored in answers
        ]

    async def complete_argument(
        self,
        ref: JsonObject,
        argument: JsonObject,
        principal: Principal,
        server: str | None = None,
        context: dict[str, str] | None = None,
    ) -> JsonObject:
        argument, context = self._redactor.redact_value(argument), self._redactor.redact_value(context)
        return await self._toolbox.complete_argument(ref, argument, principal, server, context)


class SanitizingToolbox(ToolboxWrapper):
    """Removes invisible characters and terminal sequences from what servers send."""

    async def call_tool(self, request: ToolCallRequest) -> ToolResult | PendingInput:
        observer = request.observer and _SanitizingObserver(request.observer)
        result = await self._toolbox.call_tool(msgspec.structs.replace(request, observer=observer))
        if isinstance(result, PendingInput):
            questions = tuple(_sanitize_question(question) for question in result.questions)
            return msgspec.structs.replace(result, questions=questions)
        content, structured = sanitize_value(result.content), sanitize_value(result.structured)
        return msgspec.structs.replace(result, content=content, structured=structured)

    async def list_server_items(self, kind: ItemKind, principal: Principal) -> list[JsonObject]:
        items = await self._toolbox.list_server_items(kind, principal)
        return [
            {name: value if name in _IDENTIFIERS else sanitize_value(value) for name, value in item.items()}
            for item in items
        ]

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: HostExchange | None = None
    ) -> JsonObject:
        try:
            return sanitize_value(await self._toolbox.read_resource(uri, principal, server, exchange))
        except McpServerError as error:
            raise McpServerError(sanitize_text(error.message)) from None

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: HostExchange | None = None,
    ) -> JsonObject:
        return sanitize_value(await self._toolbox.get_prompt(name, arguments, principal, server, exchange))


class _RedactingObserver(CallObserver):
    """Redacts the answers that a person gives during a call."""

    def __init__(self, observer: CallObserver, redactor: Redactor) -> None:
        self._observer = observer
        self._redactor = redactor

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._observer.on_progress(progress, total, message)

    def on_log(self, level: str, data: Any, logger: str | None) -> None:
        self._observer.on_log(level, data, logger)

    async def ask_user(self, question: Question) -> Answer:
        return _redact_answer(await self._observer.ask_user(question), self._redactor)

    def on_visit_ended(self, elicitation_id: str) -> None:
        self._observer.on_visit_ended(elicitation_id)


class _SanitizingObserver(CallObserver):
    """Sanitizes progress, log lines and questions that arrive during a call."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer

    def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self._observer.on_progress(progress, total, message and sanitize_text(message))

    def on_log(self, level: str, data: Any, logger: str | None) -> None:
        self._observer.on_log(level, sanitize_value(data), logger and sanitize_text(logger))

    async def ask_user(self, question: Question) -> Answer:
        return await self._observer.ask_user(_sanitize_question(question))

    def on_visit_ended(self, elicitation_id: str) -> None:
        self._observer.on_visit_ended(elicitation_id)


def _redact_answer(answer: Answer, redactor: Redactor) -> Answer:
    return msgspec.structs.replace(answer, content=redactor.redact_value(answer.content))


def _sanitize_question(question: Question) -> Question:
    message, schema = sanitize_text(question.message), sanitize_value(question.schema)
    return msgspec.structs.replace(question, message=message, schema=schema)
