"""Dialogs that add an MCP server, or change its settings."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from gateway_console.components.controls import open_dialog
from gateway_console.components.dialogs import ask_changes, draw_dialog_actions
from gateway_console.components.schema_form import FormError

JsonObject = dict[str, Any]
_EXAMPLE = '{"mcpServers": {"docs": {"url": "https://mcp.example.com/mcp"}}}'
_SETTINGS: JsonObject = {
    "type": "object",
    "required": ["url"],
    "properties": {
        "url": {"type": "string", "title": "URL", "format": "uri"},
        "prefix": {"type": "string", "description": "Before the names of its tools. Default: the name of the server."},
        "approval": {"enum": ["never", "destructive", "always"], "title": "Calls that a person approves"},
        "on_change": {
            "enum": ["flag", "hold"],
            "title": "Changed definitions",
            "description": "hold: they are not used before an admin has approved them.",
        },
        "sampling": {"enum": ["off", "ask", "on"], "title": "Use of the model by the server"},
        "share": {"enum": ["all", "user"], "title": "Sign-in", "description": "user: each user signs in."},
        "timeout": {"type": "number", "title": "Timeout of a call in seconds", "minimum": 0.1, "maximum": 3600},
        "allow": {"type": "array", "title": "Tools that are used", "description": "A list of globs."},
        "deny": {"type": "array", "title": "Tools that are left out", "description": "A list of globs."},
        "headers": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "title": "Headers to set",
            "description": "Names and values; null removes one. Stored values are not shown.",
        },
    },
}


def ask_servers(add: Callable[[object], Awaitable[None]]) -> None:
    """Ask for the servers of a pasted configuration file."""

    async def save() -> None:
        try:
            body = json.loads(str(field.value or ""))
        except ValueError as error:
            raise FormError(f"This is not JSON: {error}.") from None
        await add(body)

    with open_dialog("Add servers") as dialog:
        ui.label("Paste the configuration of Claude, Cursor, VS Code and other hosts. Servers are reached over HTTP.")
        field = ui.textarea("mcpServers (JSON)").props("outlined rows=10 input-class=plain").classes("w-full")
        field.props.set_optional("placeholder", _EXAMPLE)
        draw_dialog_actions(dialog, "Add", save)


def ask_settings(server: JsonObject, change: Callable[[JsonObject], Awaitable[None]]) -> None:
    """Ask for other settings of a server, and send those that differ."""
    values = {name: server.get(name) for name in _SETTINGS["properties"] if name != "headers"}
    note = f"Headers that are set: {', '.join(server['headers']) or 'none'}"
    ask_changes(f"Settings of {server['name']}", _SETTINGS, values, change, note)
