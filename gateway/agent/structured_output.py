"""Answers that must match a schema.

They are answers of models to OpenAI's `response_format`, and answers of users to a server's question.
"""

import re
from contextlib import suppress

import msgspec

from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject
from gateway_runtime.json_schema.rules import SchemaInvalid
from gateway_runtime.json_schema.validation import (
    INLINE_OPERATIONS,
    OperationBudget,
    OperationsExceeded,
    SchemaNotCheckable,
    compile_schema,
    compile_schema_off_loop,
    find_error_off_loop,
    run_in_schema_thread,
)

_MAX_MESSAGE_LENGTH = 500
_FENCE = re.compile(r"```[\w-]{0,20}\s((?:(?!```).)*+)```", re.DOTALL)
_MAX_INLINE_CHARS = 64 * 1024
_NOT_CHECKABLE = "its schema has a reference that cannot be resolved or never ends"
_ANY_OBJECT: JsonObject = {"type": "object"}


class OutputSchema:
    """The schema that an answer must match.

    Raises:
        InvalidRequest: the format is unknown, or its schema is not valid.
    """

    def __init__(self, response_format: JsonObject) -> None:
        self.response_format = response_format
        try:
            self._compiled = compile_schema(_get_schema(response_format))
        except SchemaInvalid as error:
            raise _make_format_error(error) from None

    @classmethod
    async def prepare(cls, response_format: JsonObject) -> "OutputSchema":
        """Make an output schema; a large schema is compiled in a thread."""
        try:
            await compile_schema_off_loop(_get_schema(response_format))
        except SchemaInvalid as error:
            raise _make_format_error(error) from None
        except SchemaNotCheckable:
            raise InvalidRequest(
                "response_format: the schema cannot be checked now.", param="response_format"
            ) from None
        return cls(response_format)

    async def read_answer(self, text: str) -> tuple[str, str | None]:
        """Return the JSON of an answer, and its problem, if any.

        It may stand behind a `<think>` block, or in a code fence. An answer without matching JSON is returned as it is.
        A check of many operations runs in a thread.
        """
        if len(text) <= _MAX_INLINE_CHARS:
            with suppress(OperationsExceeded):
                return self._read_answer(text, OperationBudget(INLINE_OPERATIONS))
        try:
            return await run_in_schema_thread(self._read_answer, text, OperationBudget())
        except SchemaNotCheckable:
            return text, _NOT_CHECKABLE

    def _read_answer(self, text: str, budget: OperationBudget) -> tuple[str, str | None]:
        first_problem: str | None = None
        for candidate in (text, text.rpartition("</think>")[2]):
            fence = _FENCE.search(candidate)
            for form in filter(None, (candidate.strip(), fence[1].strip() if fence else "")):
                if (problem := self._find_problem(form, budget)) is None:
                    return form, None
                first_problem = first_problem or problem
        return text, first_problem or self._find_problem(text, budget)

    def find_problem(self, text: str) -> str | None:
        """Return the reason why an answer does not match.

        None if it matches.
        """
        try:
            return self._find_problem(text, OperationBudget())
        except OperationsExceeded:
            return _NOT_CHECKABLE

    def _find_problem(self, text: str, budget: OperationBudget) -> str | None:
        """Raises:
        OperationsExceeded: the budget does not suffice to check the answer.
        """
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            return f"it is not valid JSON: {error}"
        except RecursionError:
            return "it is nested too deeply"
        try:
            error = self._compiled.find_error(value, budget)
        except OperationsExceeded:
            raise
        except SchemaNotCheckable:
            return _NOT_CHECKABLE
        if error is None:
            return None
        path = ".".join(str(part) for part in error.absolute_path)
        return f"{path or 'the answer'}: {str(error.message)[:_MAX_MESSAGE_LENGTH]}"


def _get_schema(response_format: JsonObject) -> JsonObject:
    match response_format:
        case {"type": "json_object"}:
            return _ANY_OBJECT
        case {"type": "json_schema", "json_schema": {"schema": dict()}}:
            return response_format["json_schema"]["schema"]
        case _:
            raise InvalidRequest(
                'response_format must be {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", '
                '"json_schema": {"name": …, "schema": {…}}}.',
                param="response_format",
            )


def _make_format_error(error: SchemaInvalid) -> InvalidRequest:
    message = f"response_format: the schema is not valid: {str(error)[:_MAX_MESSAGE_LENGTH]}"
    return InvalidRequest(message, param="response_format")


async def check_answer_content(content: JsonObject, schema: JsonObject) -> None:
    """Check a user's answer to a question.

    Raises:
        InvalidRequest: it does not match the question's schema, or cannot be compared with it.
    """
    try:
        error = await find_error_off_loop(await compile_schema_off_loop(schema), content)
    except (SchemaInvalid, SchemaNotCheckable):
        raise InvalidRequest("The question's schema is invalid: the question can only be declined.") from None
    if error is not None:
        path = ".".join(["content", *map(str, error.absolute_path)])
        raise InvalidRequest(f"{path}: {str(error.message)[:_MAX_MESSAGE_LENGTH]}", param=path)
