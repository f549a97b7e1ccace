"""The MCP tools over plain HTTP.

The MCP server itself answers `GET /tools` and `POST /tools/call`.
"""

import json
from typing import TypedDict, TypeGuard

import httpx2
from mcp.shared.inbound import encode_header_value
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

_PROTOCOL_VERSION = "2026-07-28"
_MAX_FIELD_LENGTH = 64
_META = {
    "io.modelcontextprotocol/protocolVersion": _PROTOCOL_VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "plain-http", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class _ContentBlock(TypedDict, total=False):
    type: str
    text: str


class _ElicitParams(TypedDict, total=False):
    message: str


class _InputRequest(TypedDict):
    params: _ElicitParams


class _McpResult(TypedDict, total=False):
    """The fields of MCP results that this module reads.

    The results are those of `tools/list` and `tools/call`.
    """

    tools: list[object]
    content: list[_ContentBlock]
    isError: bool
    inputRequests: dict[str, _InputRequest]


class _McpError(TypedDict):
    message: str


class _McpResponse(TypedDict, total=False):
    id: int
    result: _McpResult
    error: _McpError


class _RequestError(Exception):
    """Error that answers a request.

    It has the HTTP status, and the code, message and field of the body.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message} | ({"param": param} if param else {})}


def add_rest_routes(app: Starlette) -> None:
    """Add both routes to the application of the MCP server.

    The MCP server also answers them.
    """

    async def list_tools(request: Request) -> JSONResponse:
        try:
            result = await _call_mcp(app, request, "tools/list", {})
        except _RequestError as error:
            return JSONResponse(error.body, error.status)
        return JSONResponse({"tools": result.get("tools")})

    async def call_tool(request: Request) -> JSONResponse:
        try:
            name, arguments = await _parse_tool_call(request)
            result = await _call_mcp(app, request, "tools/call", {"name": name, "arguments": arguments})
        except _RequestError as error:
            return JSONResponse(error.body, error.status)
        return _to_json_response(result)

    app.add_route("/tools", list_tools, methods=["GET"])
    app.add_route("/tools/call", call_tool, methods=["POST"])


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an unknown path or method in the form of all errors."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": {"code": code, "message": message}}, error.status_code, error.headers)


async def _parse_tool_call(request: Request) -> tuple[str, dict[str, object]]:
    """Parse the tool's name and arguments from the body.

    Raises:
        _RequestError: the body is not JSON, or has other fields. The message names the field.
    """
    body = await request.body()
    example = '{"name": "calculator", "arguments": {"expression": "5*9"}}'
    try:
        call: object = json.loads(body)
        # Python accepts lone surrogates, NaN, infinities and any depth, which the MCP request cannot contain.
        json.dumps(call, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise _RequestError(422, "invalid_request", f"The body must be JSON such as {example}.") from None
    if not _is_json_object(call):
        raise _RequestError(422, "invalid_request", f"The body must be an object such as {example}.")
    for field in sorted(set(call) - {"name", "arguments"}):
        raise _make_field_error(field[:_MAX_FIELD_LENGTH], f"unknown field: send only name and arguments: {example}")
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str):
        raise _make_field_error("name", f"must be the name of a tool: {example}")
    if arguments is not None and not _is_json_object(arguments):
        raise _make_field_error("arguments", f"must be an object: {example}")
    return name, arguments or {}


def _make_field_error(field: str, problem: str) -> _RequestError:
    return _RequestError(422, "invalid_request", f"{field}: {problem}", field)


def _is_json_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


async def _call_mcp(app: Starlette, request: Request, method: str, params: dict[str, object]) -> _McpResult:
    """Send one JSON-RPC request to the MCP endpoint, with the caller's authentication.

    Raises:
        _RequestError: the MCP server answers with an error.
    """
    name = params.get("name")
    headers = {
        "Host": request.headers.get("host", "127.0.0.1"),
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": _PROTOCOL_VERSION,
        "Mcp-Method": method,
        **({"Mcp-Name": encode_header_value(name)} if isinstance(name, str) else {}),
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": _META}}

    async def run_as_caller(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**request.scope, **scope}, receive, send)

    transport = httpx2.ASGITransport(app=run_as_caller)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as client:
        response = await client.post("/mcp", json=message, headers=headers)
    decoded = _decode_response(response)
    if "error" in decoded:
        error = decoded["error"]["message"]
        raise _RequestError(404 if "nknown tool" in error else 400, "refused", error)
    return decoded.get("result", {})


def _decode_response(response: httpx2.Response) -> _McpResponse:
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        messages = [json.loads(line[5:]) for line in response.text.splitlines() if line.startswith("data:")]
        return next(message for message in messages if "id" in message)
    try:
        return response.json()
    except ValueError:  # the SDK answers some refusals in words
        raise _RequestError(response.status_code, "refused", response.text or response.reason_phrase) from None


def _to_json_response(result: _McpResult) -> JSONResponse:
    if "inputRequests" in result:
        questions = "; ".join(str(question["params"].get("message")) for question in result["inputRequests"].values())
        return JSONResponse({"error": {"code": "input_required", "message": f"The tool asks: {questions}"}}, 409)
    text = "\n".join(block.get("text", f"[{block.get('type')}]") for block in result.get("content", []))
    if result.get("isError"):
        status = 404 if text.startswith("Unknown tool") else 422
        return JSONResponse({"error": {"code": "tool_error", "message": text}}, status)
    return JSONResponse({"result": text})
