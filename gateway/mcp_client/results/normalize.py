"""Makes results of calls, prompts and resources fit the protocol.

The SDK refuses a whole result for one member that does not fit.
"""

from collections.abc import Callable
from typing import Any, cast

import msgspec
from mcp.types import AudioContent, CallToolResult, EmbeddedResource, ImageContent, ResourceLink, TextContent
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

from gateway.domain.messages import JsonObject, text_block
from gateway.mcp_client.definitions.repair import find_misfit, remove_misfits
from gateway.mcp_client.tasks.protocol import move_created_task

_MODERN_MEMBERS: JsonObject = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
_CACHE_SCOPES = ("public", "private")
_STRUCTURE_META = "mcp-agent-gateway/structured"
"""Name in `_meta` of structured results that are no objects."""
_RESULT_MEMBERS = ("_meta", "content", "structuredContent", "isError", "resultType", "ttlMs", "cacheScope")
_BLOCKS: dict[str, tuple[type[BaseModel], tuple[str, ...]]] = {
    "text": (TextContent, ("type", "text")),
    "image": (ImageContent, ("type", "data", "mimeType")),
    "audio": (AudioContent, ("type", "data", "mimeType")),
    "resource_link": (ResourceLink, ("type", "uri", "name")),
    "resource": (EmbeddedResource, ("type", "resource")),
}
"""Model and indispensable members of each type of block."""
_MEDIA_TYPES = {
    "iVBOR": "image/png",
    "/9j/": "image/jpeg",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "PHN2Zy": "image/svg+xml",
    "SUQz": "audio/mpeg",
    "T2dnUw": "audio/ogg",
}
"""Media types by the start of the base64 data."""


def set_modern_members(result: JsonObject) -> None:
    """Add required members of results of the current protocol.

    A result without `resultType` is complete.
    """
    ttl, scope = result.get("ttlMs"), result.get("cacheScope")
    if not isinstance(result.get("resultType"), str):
        result["resultType"] = "complete"
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        result["ttlMs"] = 0
    if scope not in _CACHE_SCOPES:
        result["cacheScope"] = "private"


def normalize_result(method: str, params: JsonObject, result: JsonObject, version: str) -> None:
    """Normalize the result of a request that is no list, in place.

    Those about tasks are read leniently, and stay as they are.
    """
    if method.startswith("tasks/"):
        return
    is_modern = version in MODERN_PROTOCOL_VERSIONS
    if method == "tools/call":
        move_created_task(params, result, version)
    if is_modern:
        set_modern_members(result)
        if result["resultType"] == "input_required":
            return
    if not isinstance(result.get("_meta", {}), dict):
        del result["_meta"]
    if (normalize := _NORMALIZERS.get(method)) is not None:
        normalize(params, result, is_modern)


def restore_structure(result: CallToolResult) -> None:
    """Return the structured result of a call to its place."""
    if result.meta and _STRUCTURE_META in result.meta:
        result.structured_content = result.meta.pop(_STRUCTURE_META)


def _normalize_call(_params: JsonObject, result: JsonObject, is_modern: bool) -> None:
    meta: JsonObject = result.get("_meta") or {}
    meta.pop(_STRUCTURE_META, None)
    if "structuredContent" in result and not is_modern:
        structured = result["structuredContent"]
        if structured is None:
            del result["structuredContent"]
        elif not isinstance(structured, dict):
            del result["structuredContent"]
            result["_meta"] = {**meta, _STRUCTURE_META: structured}
            meta = result["_meta"]
    if not isinstance(result.get("isError", False), bool):
        result["isError"] = result["isError"] in ("true", 1)
    content = result.get("content")
    others = {name: value for name, value in result.items() if name not in _RESULT_MEMBERS}
    if content is None and others and "structuredContent" not in result and _STRUCTURE_META not in meta:
        content = text_block(_encode(others))  # the only content, under names of the server's own
    result["content"] = [_normalize_block(block) for block in _as_list(content)]


def _normalize_prompt(_params: JsonObject, result: JsonObject, _is_modern: bool) -> None:
    messages: list[JsonObject] = []
    for message in _as_list(result.get("messages")):
        fields = cast("JsonObject", message) if isinstance(message, dict) else {"content": message}
        role = fields.get("role")
        role = role if role in ("user", "assistant") else "user"
        messages += [{"role": role, "content": _normalize_block(block)} for block in _as_list(fields.get("content"))]
    result["messages"] = messages
    if not isinstance(result.get("description", ""), str):
        del result["description"]


def _normalize_resource(params: JsonObject, result: JsonObject, _is_modern: bool) -> None:
    contents = _as_list(result.get("contents"))
    result["contents"] = [_normalize_part(part, str(params.get("uri", ""))) for part in contents]


_NORMALIZERS: dict[str, Callable[[JsonObject, JsonObject, bool], None]] = {
    "tools/call": _normalize_call,
    "prompts/get": _normalize_prompt,
    "resources/read": _normalize_resource,
}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _normalize_block(value: Any) -> JsonObject:
    """The block, repaired where it must be.

    A value that is no block of the protocol becomes its text or JSON.
    """
    if not isinstance(value, dict):
        return text_block(value if isinstance(value, str) else _encode(value))
    block = cast("JsonObject", value)
    if len(block) == 2 and block.get("type") == "text" and isinstance(block.get("text"), str):
        return block
    kind = block.get("type")
    if isinstance(kind, str) and kind in _BLOCKS:
        model, required = _BLOCKS[kind]
        _fill_required(block)
        if remove_misfits(block, required, lambda: find_misfit(lambda: model.model_validate(block, by_name=False))):
            return block
    text = block.get("text")
    return text_block(text if isinstance(text, str) else _encode(block))


def _fill_required(block: JsonObject) -> None:
    """Add members that can be derived from others."""
    data, uri = block.get("data"), block.get("uri")
    if isinstance(data, str) and not isinstance(block.get("mimeType"), str):
        found = (kind for start, kind in _MEDIA_TYPES.items() if data.startswith(start))
        block["mimeType"] = next(found, "application/octet-stream")
    if isinstance(uri, str) and not isinstance(block.get("name"), str):
        block["name"] = uri
    if isinstance(block.get("resource"), dict):
        block["resource"] = _normalize_part(block["resource"], "")


def _normalize_part(value: Any, uri: str) -> JsonObject:
    """The contents of a resource, with its URI."""
    part = cast("JsonObject", value) if isinstance(value, dict) else {"text": value}
    normalized = {**part, "uri": part["uri"] if isinstance(part.get("uri"), str) else uri}
    if not isinstance(part.get("mimeType", ""), str):
        del normalized["mimeType"]
    if not isinstance(part.get("_meta", {}), dict):
        del normalized["_meta"]
    if not isinstance(part.get("text"), str) and not isinstance(part.get("blob"), str):
        normalized.pop("blob", None)
        normalized["text"] = _encode(part["text"]) if part.get("text") is not None else ""
    return normalized
