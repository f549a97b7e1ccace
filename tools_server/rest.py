"""The MCP tools for people with only curl: `GET /tools`, `POST /tools/call`. The MCP server itself answers both."""

import json
from typing import Any

import httpx2
from mcp.shared.inbound import encode_header_value
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

_PROTOCOL_VERSION = "2026-07-28"
_META = {
    "io.modelcontextprotocol/protocolVersion": _PROTOCOL_VERSION,
    "io.modelcontextprotocol/clientInfo": {"name": "plain-http", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
_MAX_BODY_BYTES = 1024 * 1024


class _RequestError(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": code, "message": message}}


def add_rest_routes(app: Starlette) -> None:
    """Add both routes to the MCP server's own application, and ask that for what they answer."""

    async def list_tools(request: Request) -> JSONResponse:
        result = await _call_mcp(app, request, "tools/list", {})
        return JSONResponse({"tools": result["tools"]})

    async def call_tool(request: Request) -> JSONResponse:
        try:
            name, arguments = await _parse_tool_call(request)
            result = await _call_mcp(app, request, "tools/call", {"name": name, "arguments": arguments})
        except _RequestError as error:
            return JSONResponse(error.body, error.status)
        return _to_json_response(result)

    app.add_route("/tools", list_tools, methods=["GET"])
    app.add_route("/tools/call", call_tool, methods=["POST"])


async def _parse_tool_call(request: Request) -> tuple[str, dict[str, Any]]:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise _RequestError(413, "payload_too_large", f"The body is larger than {_MAX_BODY_BYTES:,} bytes.")
    example = '{"name": "calculator", "arguments": {"expression": "5*9"}}'
    try:
        wanted: Any = json.loads(body)
        # Python takes half a character, numbers without an end and any depth; what goes on to MCP cannot hold them.
        json.dumps(wanted, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise _RequestError(422, "invalid_request", f"The body must be JSON such as {example}.") from None
    match wanted:
        case {"name": str(name), **more} if set(more) <= {"arguments"}:
            arguments = more.get("arguments", {})
            if isinstance(arguments, dict):
                return name, arguments  # pyright: ignore[reportUnknownVariableType]
        case _:
            pass
    raise _RequestError(422, "invalid_request", f"The body must hold a name and arguments alone, such as {example}.")


async def _call_mcp(app: Starlette, request: Request, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """One JSON-RPC request to the MCP endpoint, as the caller."""
    headers = {
        "Host": request.headers.get("host", "127.0.0.1"),
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": _PROTOCOL_VERSION,
        "Mcp-Method": method,
        **({"Mcp-Name": encode_header_value(params["name"])} if "name" in params else {}),
    }
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": _META}}

    async def as_caller(scope: Any, receive: Any, send: Any) -> None:
        await app({**request.scope, **scope}, receive, send)

    transport = httpx2.ASGITransport(app=as_caller)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=None) as client:
        response = await client.post("/mcp", json=message, headers=headers)
    answer = _decode_response(response)
    if "error" in answer:
        raise _RequestError(
            404 if "nknown tool" in answer["error"]["message"] else 400, "refused", answer["error"]["message"]
        )
    return answer["result"]


def _decode_response(response: httpx2.Response) -> dict[str, Any]:
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        messages = [json.loads(line[5:]) for line in response.text.splitlines() if line.startswith("data:")]
        return next(message for message in messages if "id" in message)
    return response.json()


def _to_json_response(result: dict[str, Any]) -> JSONResponse:
    if "inputRequests" in result:
        asked = "; ".join(str(each["params"].get("message")) for each in result["inputRequests"].values())
        return JSONResponse({"error": {"code": "input_required", "message": f"The tool asks: {asked}"}}, 409)
    text = "\n".join(block.get("text", f"[{block.get('type')}]") for block in result["content"])
    if result.get("isError"):
        status = 404 if text.startswith("Unknown tool") else 422
        return JSONResponse({"error": {"code": "tool_error", "message": text}}, status)
    return JSONResponse({"result": text})
