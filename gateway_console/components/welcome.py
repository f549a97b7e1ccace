"""Examples of a chat without turns."""

from collections.abc import Awaitable, Callable
from functools import partial

from nicegui import ui

from gateway_console.api import Api, ApiError

_EXAMPLES = {
    "calculator": "What is 23*19?",
    "add_task": "Add a task to buy milk",
    "list_tasks": "Which tasks are pending?",
    "current_time": "What time is it in Tokyo?",
}
"""Prompts for tools that come with the gateway, by the tool."""


def draw_welcome(api: Api, place: ui.element, send: Callable[[str], Awaitable[None]]) -> ui.element:
    """Draw a welcome, with examples for the tools that there are."""
    with place, ui.column().classes("w-full items-center q-py-xl gap-3") as welcome:
        ui.label("What shall the model do?").classes("text-h6")
        text = ui.label("It uses the tools of the connected MCP servers.").classes("muted text-center")
        examples = ui.row().classes("justify-center")

    async def load() -> None:
        try:
            tools = {tool["name"] for tool in (await api.get("/api/v1/tools"))["tools"]}
        except ApiError:  # the page of the tools says why
            return
        if welcome.is_deleted:
            return
        servers = (
            f"{len(tools)} tools of the connected MCP servers" if tools else "no tools: no MCP server is connected"
        )
        text.set_text(f"It may use {servers}.")
        with examples:
            for tool, prompt in _EXAMPLES.items():
                if tool in tools:
                    ui.button(prompt, on_click=partial(send, prompt)).props("outline no-caps")

    with welcome:
        ui.timer(0, load, once=True)
    return welcome
