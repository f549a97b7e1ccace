"""`/v1/responses`: OpenAI's Responses API, implemented with turns."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Annotated
from uuid import UUID

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from msgspec.structs import replace

from gateway.agent.service import TurnHandle
from gateway.api.deps import (
    ConversationsDep,
    TurnContentsDep,
    get_principal,
    get_toolbox,
    get_turn_service,
    get_turn_store,
    run_until_disconnect,
)
from gateway.api.http.json_lists import build_list_response
from gateway.api.turn_responses import (
    GatewayToolsHeader,
    IdempotencyKey,
    build_tool_offer,
    list_model_tools,
    list_server_urls,
    start_turn,
    stream_turn,
    turn_headers,
)
from gateway.domain.conversation_ids import is_new_conversation
from gateway.domain.errors import InvalidRequest, NotFound, PreviousResponseNotFound
from gateway.domain.events import StepCompleted
from gateway.domain.messages import Answer, JsonObject, Message, TurnRequest
from gateway.domain.toolsets import bind_toolset
from gateway.store.lists.turn_contents import find_followed
from gateway.wire.openai.item_lists import ItemOrder, ItemPage, build_items
from gateway.wire.openai_response_ids import format_response_id, parse_item_id, parse_response_id
from gateway.wire.openai_response_items import ResponseContext, ResponseWriter
from gateway.wire.openai_response_request import ResponseRequest
from gateway.wire.openai_response_stream import stream_response

router = APIRouter(prefix="/responses", tags=["OpenAI"])
MAX_REFERENCED_RESPONSES = 64
"""Responses that are read for the references of one request."""
_CONTENT: dict[int | str, JsonObject] = {
    200: {
        "description": "A `response`; with `stream`, its events as server-sent events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


@router.post("", summary="Create a response", response_class=JSONResponse, responses=_CONTENT)
async def create_response(
    body: ResponseRequest,
    request: Request,
    x_gateway_tools: GatewayToolsHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a response in the format of OpenAI's Responses API.

    Calls of gateway tools are MCP items. `tools` of type `mcp` select the gateway's MCP servers and their tools; a
    request with other tools alone gets no gateway tools, unless `x_gateway.tools` or the header says otherwise. An
    `mcp_approval_response` continues the turn that asked for approval, and returns the rest of it as a new response.
    """
    principal = get_principal(request)
    part = 0
    if (answers := body.find_approvals()) is not None:
        turn = await _answer_approvals(answers.turn_id, answers.decisions, request)
        part = answers.part + 1
    else:
        if body.references:
            body = body.replace_references(await _find_items(body.references, request))
        principal = bind_toolset(principal, body.toolset)
        specs, urls = list_model_tools(request, principal), list_server_urls(request, principal)
        offer = build_tool_offer(request, principal, body.model, x_gateway_tools)
        turn_request = body.to_turn_request(offer, specs=specs, urls=urls, idempotency_key=idempotency_key)
        turn = await _start_turn(turn_request, request)
    create_writer = partial(_create_writer, turn, request, part)
    if body.stream:
        return stream_turn(turn, request, partial(stream_response, writer=create_writer()))
    writer = (
        _begin_in_background(turn, create_writer())
        if body.background
        else await _wait_for_response(turn, request, create_writer)
    )
    return JSONResponse(writer.build_response(), headers=turn_headers(turn))


async def _start_turn(turn_request: TurnRequest, request: Request) -> TurnHandle:
    try:
        return await start_turn(turn_request, request, get_principal(request))
    except NotFound as error:
        if error.param != "parent_turn_id" or turn_request.parent_turn_id is None:
            raise
        response_id = format_response_id(turn_request.parent_turn_id)
        message = f"The previous response {response_id!r} was not found."
        raise PreviousResponseNotFound(message, param="previous_response_id") from None


@router.post("/input_tokens", summary="Estimate the tokens of a response's input")
async def count_input_tokens(
    body: ResponseRequest,
    request: Request,
    conversations: ConversationsDep,
    contents: TurnContentsDep,
    x_gateway_tools: GatewayToolsHeader = None,
) -> JsonObject:
    """An estimate of the tokens of the prompt.

    It includes the gateway's system prompt, the tools on offer, and the conversation so far.
    """
    principal = get_principal(request)
    if body.references:
        body = body.replace_references(await _find_items(body.references, request))
    principal = bind_toolset(principal, body.toolset)
    specs, urls = list_model_tools(request, principal), list_server_urls(request, principal)
    offer = build_tool_offer(request, principal, body.model, x_gateway_tools)
    turn_request = body.to_turn_request(offer, specs=specs, urls=urls)
    head: UUID | None = None
    if body.previous_response_id is not None:
        head = (await _find_response(body.previous_response_id, request))[0].id
    elif turn_request.conversation_id is not None and not is_new_conversation(turn_request.conversation_id):
        conversation = await conversations.get_conversation(turn_request.conversation_id, principal)
        followed = find_followed(await contents.list_nodes(conversation.id))
        head = followed.id if followed is not None else None
    if head is not None:
        stored = await get_turn_store(request).get_turn(head, principal)
        history = await conversations.load_history(head)
        earlier = [turn.messages for turn in history.turns]
        messages = (*chain.from_iterable(earlier), *msgspec.convert(stored.messages, tuple[Message, ...]))
        turn_request = replace(turn_request, messages=(*messages, *turn_request.messages))
    tokens = await get_turn_service(request).count_tokens(replace(turn_request, conversation_id=None), principal)
    return {"object": "response.input_tokens", "input_tokens": tokens}


@router.get("/{response_id}", summary="Get a response", response_class=JSONResponse, responses=_CONTENT)
async def get_response(
    response_id: str,
    request: Request,
    stream_: Annotated[bool, Query(alias="stream", description="Stream the events of the response.")] = False,
    starting_after: Annotated[int, Query(ge=-1, description="Number of the last event that the client received.")] = -1,
    _include: Annotated[list[str] | None, Query(alias="include[]", description="Accepted and ignored.")] = None,
) -> Response:
    """The current state of a response.

    With `stream`, its events after `starting_after`, and then new events.
    """
    turn, writer = await _find_response(response_id, request)
    if stream_:
        return stream_turn(turn, request, partial(stream_response, writer=writer, after=starting_after))
    return await _build_current(turn, writer, request)


@router.get("/{response_id}/input_items", summary="List the input items of a response")
async def list_input_items(
    response_id: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="Maximum number of items in the page.")] = 20,
    order: Annotated[ItemOrder, Query(description="Newest first (desc) or oldest first (asc).")] = "desc",
    after: Annotated[str | None, Query(max_length=200, description="Id of the last item of the page before.")] = None,
    _include: Annotated[list[str] | None, Query(alias="include[]", description="Accepted and ignored.")] = None,
) -> JsonObject:
    """The items of the request, newest first, in pages.

    A page ends after 1 MiB, too; `has_more` is true if others follow.
    """
    turn, _ = await _find_response(response_id, request)
    stored = await get_turn_store(request).get_turn(turn.id, get_principal(request))
    items = build_items(stored.id, stored.messages[: stored.sent_messages])
    page = ItemPage(limit=limit, after=after)
    for item in items if order == "asc" else reversed(items):
        page.add(item)
        if page.is_full:
            break
    return page.build()


@router.delete("/{response_id}", summary="Delete a response")
async def delete_response(response_id: str, request: Request) -> JsonObject:
    """Delete the turn with everything stored about it.

    An active turn is cancelled first.
    """
    turn, _ = await _find_response(response_id, request)
    await get_turn_service(request).cancel_turn(turn)
    await get_turn_store(request).delete_turn(turn.id, by=get_principal(request).user)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel", summary="Cancel a response", response_class=JSONResponse)
async def cancel_response(response_id: str, request: Request) -> Response:
    """Cancel the turn of a response.

    The text so far is stored. A response that has ended does not change.
    """
    turn, writer = await _find_response(response_id, request)
    await get_turn_service(request).cancel_turn(turn)
    return await _build_current(turn, writer, request)


async def _find_items(references: dict[str, int], request: Request) -> dict[str, JsonObject]:
    """Return the items of earlier responses by their ids.

    Raises:
        InvalidRequest: an item does not exist, or its response was not stored.
    """
    sources = {item_id: parse_item_id(item_id) for item_id in references}
    parts = list(dict.fromkeys(source for source in sources.values() if source is not None))
    if len(parts) > MAX_REFERENCED_RESPONSES:
        message = f"input: references to at most {MAX_REFERENCED_RESPONSES} responses are allowed, not {len(parts)}."
        raise InvalidRequest(message, param="input")
    found: dict[str, JsonObject] = {}
    parts_by_turn: dict[UUID, list[int]] = {}
    for turn_id, part in parts:
        parts_by_turn.setdefault(turn_id, []).append(part)
    for turn_id, turn_parts in parts_by_turn.items():  # a turn is read once, also for several of its parts
        with suppress(NotFound):
            turn, _ = await _find_response(format_response_id(turn_id), request)
            writers = [_create_writer(turn, request, part) for part in turn_parts]
            async for item in _iterate_items(turn, writers, request):
                if item["id"] in references:
                    found[item["id"]] = item
    for item_id, number in references.items():
        if item_id not in found:
            message = f"input.{number}: the item {item_id!r} was not found; send the item itself."
            raise InvalidRequest(message, param=f"input.{number}.id")
    return found


async def _find_response(response_id: str, request: Request) -> tuple[TurnHandle, ResponseWriter]:
    turn_id, part = parse_response_id(response_id)
    try:
        turn = await get_turn_service(request).get_turn(turn_id, get_principal(request))
    except NotFound:
        raise NotFound(f"The response {response_id!r} was not found.", param="response_id") from None
    return turn, _create_writer(turn, request, part)


def _create_writer(turn: TurnHandle, request: Request, part: int) -> ResponseWriter:
    toolset = (turn.echo or {}).get("toolset")
    principal = get_principal(request)
    principal = principal if principal.toolset is not None else bind_toolset(principal, toolset)
    find_tool = partial(get_toolbox(request).find_tool, principal=principal)
    return ResponseWriter(turn.id, ResponseContext(turn.echo, find_tool), part)


async def _answer_approvals(turn_id: UUID, approvals: dict[UUID, bool], request: Request) -> TurnHandle:
    principal, service = get_principal(request), get_turn_service(request)
    turn = await service.get_turn_to_answer(turn_id, principal)
    for input_id, approve in approvals.items():
        answer = Answer("accept" if approve else "decline", {} if approve else None, by=principal.user)
        await service.answer_question(turn, input_id, answer)
    return turn


def _begin_in_background(turn: TurnHandle, writer: ResponseWriter) -> ResponseWriter:
    """Return the response at its start; the turn continues in the background."""
    if turn.first_event is not None:
        writer.write_event(turn.first_event)
    return writer


async def _wait_for_response(
    turn: TurnHandle, request: Request, create_writer: Callable[[], ResponseWriter]
) -> ResponseWriter:
    """Wait for the end of the response.

    Raises:
        GatewayError: the turn failed without any output. A failure after output is part of the response.
    """
    writer = await run_until_disconnect(request, get_turn_service(request).wait_for_turn(turn, create_writer))
    if turn.failure is not None and not writer.has_output:
        raise turn.failure
    if not writer.has_ended:
        writer.end_for_input()
    return writer


async def _build_current(turn: TurnHandle, writer: ResponseWriter, request: Request) -> Response:
    """Build the response from the journal, else from the stored turn.

    Its items are read as the client reads them.
    """
    return await build_list_response(
        {"output": _iterate_items(turn, [writer], request)}, tail=lambda: _encode_fields(writer)
    )


async def _iterate_items(
    turn: TurnHandle, writers: Sequence[ResponseWriter], request: Request
) -> AsyncIterator[JsonObject]:
    """Read the output items of responses of a turn.

    Raises:
        NotFound: the responses were not stored, or have not begun.
    """
    if not turn.is_stored:
        raise NotFound("This response was not stored.", param="response_id")
    stored = await get_turn_store(request).get_turn(turn.id, get_principal(request))
    async for event in get_turn_store(request).iterate_events(stored):
        for writer in writers:
            writer.write_event(event)
            if isinstance(event, StepCompleted):  # not each delta
                for item in writer.take_finished_items():
                    yield item
    begun = [writer for writer in writers if writer.has_begun]
    if not begun:
        raise NotFound("The response was not found.", param="response_id")
    for writer in begun:
        if not writer.has_ended and stored.status == "waiting":
            writer.end_for_input()
        for item in writer.build_response()["output"]:
            yield item


def _encode_fields(writer: ResponseWriter) -> bytes:
    response = writer.build_response()
    del response["output"]
    return msgspec.json.encode(response)
