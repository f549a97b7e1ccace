"""Requests that Schemathesis generates from an OpenAPI document."""

import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

EXCLUDED_CHECKS = "negative_data_rejection,positive_data_acceptance"
MCP_HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
_OFFLINE_METHODS = {
    "tools/list": {},
    "prompts/list": {},
    "resources/list": {},
    "ping": {},
    "prompts/get": {"name": {"type": "string"}, "arguments": {"type": "object"}},
    "resources/read": {"uri": {"type": "string"}},
    "completion/complete": {"ref": {"type": "object"}, "argument": {"type": "object"}},
    "logging/setLevel": {"level": {"type": "string"}},
}
_WEB_TOOLS = ("web_search", "fetch_page")


async def run_schemathesis(
    base_url: str, directory: Path, *options: str, document: Path | None = None, seconds: float = 60
) -> tuple[int, str]:
    """Run Schemathesis, and return its exit code and output.

    The document is `/openapi.json` of the server, or a file.
    """
    for face in ("a2a.handler", "chatkit.server"):  # their first requests would wait for the imports of SDKs
        await asyncio.to_thread(import_module, f"gateway.api.routes.{face}")
    location = [f"{base_url}/openapi.json"] if document is None else [str(document), "--url", base_url]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        *location,
        "--seed",
        "20261121",
        "--phases",
        "examples,fuzzing",
        "--checks",
        "all",
        "--exclude-checks",
        EXCLUDED_CHECKS,
        "--warnings",
        "off",
        "--no-shrink",
        "--request-timeout",
        "30",
        "--generation-database",
        "none",
        *options,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode or 0, output.decode()


def write_tool_server_document(tools: list[Any], path: Path) -> None:
    """Write an OpenAPI document of the tool server's routes.

    Its list of tools is the source.
    Tools that reach the web are left out.
    """
    calls = [tool for tool in tools if tool["name"] not in _WEB_TOOLS]
    requests = [
        _build_object({"name": {"const": tool["name"]}, "arguments": tool["inputSchema"]}, "name") for tool in calls
    ]
    params = [(method, _build_object(fields, *fields)) for method, fields in _OFFLINE_METHODS.items()]
    params += [("tools/call", request) for request in requests]
    messages = [
        _build_object(
            {
                "jsonrpc": {"const": "2.0"},
                "id": {"type": ["integer", "string"]},
                "method": {"const": method},
                "params": schema,
            },
            *("jsonrpc", "id", "method", "params"),
        )
        for method, schema in params
    ]
    paths = {
        "/health": {"get": _build_operation("200", "503")},
        "/tools": {"get": _build_operation("200")},
        "/tools/call": {"post": _build_operation(*_CALL_STATUSES, body={"oneOf": requests})},
        "/mcp": {"post": _build_operation(*_MCP_STATUSES, body={"oneOf": messages})},
    }
    document = {"openapi": "3.1.0", "info": {"title": "Tool server", "version": "1"}, "paths": paths}
    path.write_text(json.dumps(document))


_CALL_STATUSES = ("200", "400", "404", "409", "413", "415", "422")
_MCP_STATUSES = ("200", "202", "400", "404", "406", "413", "415", "422")


def _build_object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _build_operation(*statuses: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    operation: dict[str, Any] = {"responses": {status: {"description": status} for status in statuses}}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation
