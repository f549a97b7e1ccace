"""Structured output: OpenAI's `response_format` of the types json_object and json_schema."""

import re

import msgspec
from jsonschema.exceptions import SchemaError

from gateway.common.json_schema import SchemaNotCheckable, best_error, check_schema, compile_schema
from gateway.domain.errors import InvalidRequest
from gateway.domain.messages import JsonObject

_MAX_MESSAGE_LENGTH = 500
_FENCE = re.compile(r"```[\w-]{0,20}\s((?:(?!```).)*+)```", re.DOTALL)


class OutputSchema:
    """The schema that an answer must match.

    Raises:
        InvalidRequest: the format is unknown, or its schema is not valid.
    """

    def __init__(self, response_format: JsonObject) -> None:
        self.response_format = response_format
        match response_format:
            case {"type": "json_object"}:
                schema: JsonObject = {"type": "object"}
            case {"type": "json_schema", "json_schema": {"schema": dict()}}:
                schema = response_format["json_schema"]["schema"]
            case _:
                raise InvalidRequest(
                    'response_format must be {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", '
                    '"json_schema": {"name": …, "schema": {…}}}.',
                    param="response_format",
                )
        try:
            check_schema(schema)
        except SchemaError as error:
            message = f"response_format: the schema is not valid: {error.message[:_MAX_MESSAGE_LENGTH]}"
            raise InvalidRequest(message, param="response_format") from None
        except SchemaNotCheckable:
            raise InvalidRequest("response_format: the schema is nested too deeply.", param="response_format") from None
        self._checker = compile_schema(schema)

    def read_answer(self, text: str) -> str:
        """Return the JSON of an answer.

        It may stand behind a `<think>` block, or in a code fence. An answer without matching JSON is returned as it is.
        """
        for candidate in (text, text.rpartition("</think>")[2]):
            fence = _FENCE.search(candidate)
            for form in (candidate.strip(), fence[1].strip() if fence else ""):
                if form and not self.find_problem(form):
                    return form
        return text

    def find_problem(self, text: str) -> str | None:
        """Return the reason why an answer does not match.

        None if it matches.
        """
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            return f"it is not valid JSON: {error}"
        except RecursionError:
            return "it is nested too deeply"
        try:
            error = best_error(self._checker, value)
        except SchemaNotCheckable:
            return "its schema has a reference that cannot be resolved or never ends"
        if error is None:
            return None
        path = ".".join(str(part) for part in error.absolute_path)
        return f"{path or 'the answer'}: {str(error.message)[:_MAX_MESSAGE_LENGTH]}"
