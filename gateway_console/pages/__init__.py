"""The pages of the console, one module each."""

from collections.abc import Callable

from fastapi import Request
from nicegui import ui

from gateway_console.api import Api
from gateway_console.pages.chat import draw_chat


def register_pages(build_api: Callable[[Request], Api]) -> None:
    """Register the routes of all pages."""

    @ui.page("/")
    async def show_new_chat(request: Request) -> None:
        await draw_chat(build_api(request), None)

    @ui.page("/chat/{conversation_id}")
    async def show_chat(request: Request, conversation_id: str) -> None:
        await draw_chat(build_api(request), conversation_id)
