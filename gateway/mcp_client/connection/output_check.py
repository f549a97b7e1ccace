"""Checks the results of tools against their output schemas."""

from collections.abc import Callable

from mcp import Client
from mcp.types import CallToolResult, Tool

from gateway.common.logging import get_logger
from gateway.common.sanitize import clean_text
from gateway.mcp_client.results.normalize import restore_structure
from gateway.mcp_client.tasks.protocol import TASK_META
from gateway_runtime.json_schema.rules import SchemaInvalid
from gateway_runtime.json_schema.validation import SchemaNotCheckable, compile_schema_off_loop, find_error_off_loop

log = get_logger(__name__)


class OutputMismatch(RuntimeError):
    """A structured result does not fit its tool's output schema."""


def replace_output_check(client: Client, server: str, find_tool: Callable[[str], Tool | None]) -> None:
    """Replace the SDK's check of results.

    It runs in the event loop without a bound. A result without structured content keeps its text. A result whose schema
    cannot be checked is accepted: a server that writes such a schema could as well write none.
    """

    async def validate_tool_result(name: str, result: CallToolResult) -> None:
        restore_structure(result)
        tool = find_tool(name)
        if tool is None or tool.output_schema is None or TASK_META in (result.meta or {}):
            return
        if result.structured_content is None and "structured_content" not in result.model_fields_set:
            log.info("mcp_result_without_structure", server=server, tool=clean_text(name, 100))
            return
        try:
            schema = await compile_schema_off_loop(tool.output_schema)
            error = await find_error_off_loop(schema, result.structured_content)
        except (SchemaInvalid, SchemaNotCheckable) as problem:
            log.info("mcp_result_not_checked", server=server, tool=clean_text(name, 100), error=type(problem).__name__)
            return
        if error is not None:
            raise OutputMismatch("the structured content does not fit the output schema")

    client.session.validate_tool_result = validate_tool_result
