"""Questions to one MCP server about its resources and prompts, with answers as the protocol writes them."""

import re
from typing import Any

from mcp import Client
from mcp.types import PromptReference, ResourceTemplateReference, ServerCapabilities

from gateway.domain.messages import JsonObject
from gateway.ports.tools import Listed

_MOST_PAGES, _MOST_ITEMS = 100, 1_000


def has(capabilities: ServerCapabilities | None, kind: Listed) -> bool:
    """Whether a server says that it has any of a kind."""
    if capabilities is None:
        return False
    return bool(capabilities.prompts if kind == "prompts" else capabilities.resources)


async def everything(kind: Listed, client: Client) -> list[JsonObject]:
    """All pages of a list, as far as is bearable."""
    lists: dict[Listed, Any] = {
        "resources": client.list_resources,
        "resource_templates": client.list_resource_templates,
        "prompts": client.list_prompts,
    }
    found: list[JsonObject] = []
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await lists[kind](cursor=cursor)
        found += [_told(item) for item in getattr(page, kind)]
        cursor = page.next_cursor
        if cursor is None or len(found) >= _MOST_ITEMS:
            break
    return found[:_MOST_ITEMS]


async def read(uri: str, client: Client) -> JsonObject:
    return {"contents": _told(await client.read_resource(uri))["contents"]}


async def prompt(name: str, arguments: dict[str, str], client: Client) -> JsonObject:
    told = _told(await client.get_prompt(name, arguments))
    return {key: told[key] for key in ("description", "messages") if key in told}


async def complete(ref: JsonObject, argument: JsonObject, client: Client) -> JsonObject:
    kind = PromptReference if ref.get("type") == "ref/prompt" else ResourceTemplateReference
    answer = await client.complete(kind.model_validate(ref), {"name": argument["name"], "value": argument["value"]})
    return {"completion": _told(answer)["completion"]}


def fits(uri: str, template: str) -> bool:
    """Whether a URI may come of a URI template of the simple kind: `{name}` stands for one part, `{+name}` for any."""
    parts = re.split(r"(\{[^{}]*\})", template)
    pattern = "".join((".+" if p[1:2] in "+#*" else "[^/]+") if p.startswith("{") else re.escape(p) for p in parts)
    return re.fullmatch(pattern, uri) is not None


def _told(value: Any) -> JsonObject:
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)
