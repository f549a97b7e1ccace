"""The pages of the console, one module each."""

from collections.abc import Callable

from fastapi import Request
from nicegui import ui

from gateway_console.api import Api
from gateway_console.pages.audit import draw_audit
from gateway_console.pages.chat import draw_chat
from gateway_console.pages.comparison import draw_comparison
from gateway_console.pages.conversations import draw_conversations
from gateway_console.pages.definitions import draw_definitions
from gateway_console.pages.keys import draw_keys
from gateway_console.pages.operations import draw_operations, draw_watched_turn
from gateway_console.pages.resources import draw_resources
from gateway_console.pages.servers import draw_servers
from gateway_console.pages.tools import draw_tool, draw_tools
from gateway_console.pages.turn import draw_turn
from gateway_console.pages.usage import draw_usage

_BUILD_SECONDS = 90.0
"""Timeout of a page's first drawing, which waits for the gateway."""


def register_pages(build_api: Callable[[Request], Api]) -> None:
    """Register the routes of all pages."""
    _register_chat(build_api)
    _register_conversations(build_api)
    _register_tools(build_api)
    _register_administration(build_api)


def _register_conversations(build_api: Callable[[Request], Api]) -> None:
    @ui.page("/conversations", response_timeout=_BUILD_SECONDS)
    async def show_conversations(request: Request) -> None:
        await draw_conversations(build_api(request))

    @ui.page("/turns/{turn_id}", response_timeout=_BUILD_SECONDS)
    async def show_turn(request: Request, turn_id: str) -> None:
        await draw_turn(build_api(request), turn_id)

    @ui.page("/compare/{left_id}/{right_id}", response_timeout=_BUILD_SECONDS)
    async def show_comparison(request: Request, left_id: str, right_id: str) -> None:
        await draw_comparison(build_api(request), left_id, right_id)


def _register_chat(build_api: Callable[[Request], Api]) -> None:
    @ui.page("/", response_timeout=_BUILD_SECONDS)
    async def show_new_chat(request: Request) -> None:
        await draw_chat(build_api(request), None)

    @ui.page("/chat/{conversation_id}", response_timeout=_BUILD_SECONDS)
    async def show_chat(request: Request, conversation_id: str, turn: str | None = None) -> None:
        await draw_chat(build_api(request), conversation_id, last_turn=turn)


def _register_tools(build_api: Callable[[Request], Api]) -> None:
    @ui.page("/tools", response_timeout=_BUILD_SECONDS)
    async def show_tools(request: Request) -> None:
        await draw_tools(build_api(request))

    @ui.page("/tools/{name:path}", response_timeout=_BUILD_SECONDS)
    async def show_tool(request: Request, name: str) -> None:
        await draw_tool(build_api(request), name)

    @ui.page("/definitions", response_timeout=_BUILD_SECONDS)
    async def show_definitions(request: Request) -> None:
        await draw_definitions(build_api(request))

    @ui.page("/servers", response_timeout=_BUILD_SECONDS)
    async def show_servers(request: Request) -> None:
        await draw_servers(build_api(request))

    @ui.page("/resources", response_timeout=_BUILD_SECONDS)
    async def show_resources(request: Request) -> None:
        await draw_resources(build_api(request))


def _register_administration(build_api: Callable[[Request], Api]) -> None:
    @ui.page("/usage", response_timeout=_BUILD_SECONDS)
    async def show_usage(request: Request) -> None:
        await draw_usage(build_api(request))

    @ui.page("/keys", response_timeout=_BUILD_SECONDS)
    async def show_keys(request: Request) -> None:
        await draw_keys(build_api(request))

    @ui.page("/audit", response_timeout=_BUILD_SECONDS)
    async def show_audit(request: Request) -> None:
        await draw_audit(build_api(request))

    @ui.page("/operations", response_timeout=_BUILD_SECONDS)
    async def show_operations(request: Request) -> None:
        await draw_operations(build_api(request))

    @ui.page("/watch/{turn_id}", response_timeout=_BUILD_SECONDS)
    async def show_watched_turn(request: Request, turn_id: str) -> None:
        await draw_watched_turn(build_api(request), turn_id)
