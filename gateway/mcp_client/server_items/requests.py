"""Requests about resources and prompts; answers are the protocol's JSON."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, cast

from mcp import Client
from mcp.types import (
    InputRequiredResult,
    PromptReference,
    RequestParamsMeta,
    ResourceTemplateReference,
    ServerCapabilities,
)
from pydantic import BaseModel

from gateway.common.mcp_meta import remove_connection_keys
from gateway.domain.errors import NotFound
from gateway.domain.messages import JsonObject, Principal
from gateway.mcp_client.connection.client_capabilities import calling_for
from gateway.mcp_client.connection.errors import ToolCallError
from gateway.mcp_client.definitions.limits import ListLimit
from gateway.mcp_client.definitions.pages import read_list
from gateway.mcp_client.definitions.problems import DefinitionProblems
from gateway.mcp_client.elicitation import (
    UnsupportedElicitation,
    make_input_responses,
    parse_input_request,
    parse_request_for_host,
)
from gateway.mcp_client.uri_templates import UriMatcher
from gateway.ports.tools import ITEM_NAME_FIELDS, DefinitionKind, HostExchange, InputNeeded, ItemKind

ListItems = Callable[[ItemKind, Principal], Awaitable[list[JsonObject]]]

_TEMPLATE_LENGTH_AT_ONCE = 8_000
"""Characters of templates compared in one pass of the event loop."""
_TEMPLATE_OVERHEAD = 100
MAX_SERVER_TEMPLATE_LENGTH = 250_000
"""Characters of the templates of a server; those beyond match nothing."""
_MAX_URI_LENGTH = 4_000

_DEFINITION_KINDS: dict[ItemKind, DefinitionKind] = {
    "resources": "resource",
    "resource_templates": "resource_template",
    "prompts": "prompt",
}


def supports_listing(capabilities: ServerCapabilities | None, kind: ItemKind) -> bool:
    """Whether a server declares any items of this kind."""
    if capabilities is None:
        return False
    return bool(capabilities.prompts if kind == "prompts" else capabilities.resources)


async def list_items(kind: ItemKind, problems: DefinitionProblems, client: Client) -> list[JsonObject]:
    """All pages of a server's list.

    The limits are 100 pages, 1,000 items, and the size of the items.
    """
    list_methods: dict[ItemKind, Callable[..., Awaitable[Any]]] = {
        "resources": client.list_resources,
        "resource_templates": client.list_resource_templates,
        "prompts": client.list_prompts,
    }
    definition_kind, name_field = _DEFINITION_KINDS[kind], ITEM_NAME_FIELDS[kind]
    limit = ListLimit(definition_kind, problems)

    def dump_items(page: Any) -> Iterator[tuple[str, JsonObject]]:
        for item in map(_dump_model, getattr(page, kind)):
            yield item[name_field], item

    items = await read_list(
        lambda cursor: list_methods[kind](cursor=cursor),
        dump_items,
        lambda item: limit.accepts(item[name_field], item),
        definition_kind,
        problems,
    )
    return list(items.values())


async def request_resource(uri: str, exchange: HostExchange | None, client: Client) -> JsonObject:
    """The contents of a resource."""
    if exchange is None:
        result = await client.read_resource(uri)
    else:
        result = await _exchange_input(exchange, partial(client.session.read_resource, uri))
    return _select(_dump_model(result), "contents")


async def request_prompt(
    name: str, arguments: dict[str, str], exchange: HostExchange | None, client: Client
) -> JsonObject:
    """The description and messages of a prompt."""
    if exchange is None:
        answer = await client.get_prompt(name, arguments)
    else:
        answer = await _exchange_input(exchange, partial(client.session.get_prompt, name, arguments))
    return _select(_dump_model(answer), "description", "messages")


async def request_completion(
    ref: JsonObject, argument: JsonObject, context: dict[str, str] | None, client: Client
) -> JsonObject:
    """Completions for one argument of a prompt or resource template."""
    kind = PromptReference if ref.get("type") == "ref/prompt" else ResourceTemplateReference
    named = {"name": argument["name"], "value": argument["value"]}
    result = await client.complete(kind.model_validate(ref), named, context)
    return _select(_dump_model(result), "completion")


async def find_resource_server(list_items: ListItems, uri: str, principal: Principal) -> str:
    """Name of the server that has a resource or matching template.

    `list_items` lists the items of all servers that the principal may use.

    Raises:
        NotFound: no connected server has it.
    """
    if len(uri) > _MAX_URI_LENGTH:
        raise NotFound(f"No connected server has the resource {uri[:200]!r}.", param="uri")
    for item in await list_items("resources", principal):
        if item["uri"] == uri:
            return item["server"]
    matcher, compared = UriMatcher(uri), 0
    by_server: Counter[str] = Counter()
    for item in await list_items("resource_templates", principal):
        template, server = item["uriTemplate"], item["server"]
        length = len(template) + _TEMPLATE_OVERHEAD
        by_server[server] += length
        if by_server[server] > MAX_SERVER_TEMPLATE_LENGTH:
            continue
        if matcher.matches(template):
            return server
        compared += length
        if compared >= _TEMPLATE_LENGTH_AT_ONCE:
            compared = 0
            await asyncio.sleep(0)  # other tasks run
    raise NotFound(f"No connected server has the resource {uri[:200]!r}.", param="uri")


async def _exchange_input(exchange: HostExchange, send: Callable[..., Awaitable[BaseModel]]) -> BaseModel:
    """Send a request for a host, with its answers.

    Raises:
        InputNeeded: the server asks the host first.
        ToolCallError: it asks for something that the host cannot answer.
    """
    answers = exchange.answers
    try:
        with calling_for(exchange.host):
            result = await send(
                input_responses=make_input_responses(answers),
                request_state=answers[0].state if answers else None,
                meta=cast(RequestParamsMeta, dict(exchange.meta)),
                allow_input_required=True,
            )
        if isinstance(result, InputRequiredResult):
            raise InputNeeded(parse_input_request(result, partial(parse_request_for_host, exchange.host)))
    except UnsupportedElicitation as error:
        raise ToolCallError(str(error), did_run=False) from error
    return result


def _select(result: JsonObject, *members: str) -> JsonObject:
    """The members of a result for hosts, and its `_meta`."""
    selected = {name: result[name] for name in members if name in result}
    meta = remove_connection_keys(result.get("_meta"))
    return selected | ({"_meta": meta} if meta else {})


def _dump_model(model: BaseModel) -> JsonObject:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
