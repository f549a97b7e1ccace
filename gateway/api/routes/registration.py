"""Register every route module with the application."""

from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.routing import APIRoute

from gateway.api.documentation import pages
from gateway.api.routes.a2a import tasks as a2a_tasks
from gateway.api.routes.admin import api_keys, audit, operations, stats, user_data
from gateway.api.routes.admin import turns as admin_turns
from gateway.api.routes.anthropic import messages
from gateway.api.routes.chatkit import threads as chatkit_threads
from gateway.api.routes.front_ends import ag_ui, ui_messages
from gateway.api.routes.legacy import chat as legacy_chat
from gateway.api.routes.mcp import (
    definitions,
    identity_keys,
    mcp_resources,
    mcp_servers,
    mcp_sign_in,
    resource_metadata,
    server_card,
    toolsets,
)
from gateway.api.routes.native import (
    branches,
    budget,
    chat,
    conversations,
    health,
    history,
    home,
    metrics,
    models,
    tools,
    turns,
    usage,
    webhooks,
)
from gateway.api.routes.openai import chat_completions, responses
from gateway.api.routes.openai import conversations as openai_conversations
from gateway.api.routes.upstream import audio, files

_DIRECT = (
    chat.chat,
    chat.chat_stream,
    chat_completions.chat_completions,
    chat_completions.completions,
    responses.create_response,
    messages.create_message,
)
"""Endpoints that start turns."""


def list_direct_routes() -> Iterator[tuple[str, APIRoute]]:
    """Yield path and route of each endpoint that `DirectRouteMiddleware` calls."""
    routers = [("", chat.router), ("", messages.router)]
    for prefix in chat_completions.PREFIXES:
        routers += [(prefix, chat_completions.router), (prefix, responses.router)]
    for prefix, router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.endpoint in _DIRECT:
                yield prefix + route.path, route


def register_routes(app: FastAPI) -> None:
    """Add all routes, in the order in which request paths are matched."""
    for module in (
        chat,
        turns,
        branches,
        definitions,  # before `/tools/{name}`
        tools,
        models,
        health,
        metrics,
        home,
        conversations,
        history,
        usage,
        webhooks,
        mcp_servers,
        toolsets,
        mcp_resources,
        mcp_sign_in,
        identity_keys,
        resource_metadata,
        server_card,
        api_keys,
        budget,
        stats,
        admin_turns,
        operations,
        audit,
        user_data,
        legacy_chat,
        messages,
        ui_messages,
        a2a_tasks,
        ag_ui,
        chatkit_threads,
    ):
        # `include_router` would build every route again for each application, which slows the tests down.
        app.router.routes.extend(module.router.routes)
    for prefix in chat_completions.PREFIXES:
        for router in (
            responses.router,
            openai_conversations.router,
            chat_completions.router,
            audio.router,
            files.router,
        ):
            app.include_router(router, prefix=prefix, include_in_schema=prefix == "/v1")
    app.router.routes.extend(pages.router.routes)
    app.router.routes.extend(legacy_chat.message_router.routes)  # matches every remaining path under /api/
