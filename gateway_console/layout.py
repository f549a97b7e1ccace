"""The frame of every page: header, navigation, colours."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nicegui import ui

from gateway_console.api import Api, ApiError
from gateway_console.components.markdown import build_code_style

_NOT_SIGNED_IN = 401
_RANKS = {"viewer": 0, "user": 1, "admin": 2}


@dataclass(frozen=True)
class NavigationEntry:
    """A page in the navigation, for a role and higher ones."""

    path: str
    title: str
    icon: str
    role: str = "viewer"
    group: str = ""


NAVIGATION: list[NavigationEntry] = [
    NavigationEntry("/", "Chat", "chat"),
    NavigationEntry("/conversations", "Conversations", "forum"),
    NavigationEntry("/tools", "Tools", "build", group="Tools"),
    NavigationEntry("/servers", "MCP servers", "dns", group="Tools"),
    NavigationEntry("/definitions", "Defined tools", "construction", role="admin", group="Tools"),
    NavigationEntry("/resources", "Resources, prompts", "description", group="Tools"),
    NavigationEntry("/usage", "Usage and cost", "bar_chart", group="Account"),
    NavigationEntry("/keys", "API keys", "key", group="Account"),
    NavigationEntry("/operations", "Operations", "monitor_heart", role="admin", group="Administration"),
    NavigationEntry("/audit", "Audit log", "fact_check", role="admin", group="Administration"),
]
_STYLE_FILE = Path(__file__).parent / "assets" / "console.css"


def add_style() -> None:
    """Add the style of all pages. Called once at start."""
    ui.add_css(_STYLE_FILE.read_text() + build_code_style(), shared=True)


@contextmanager
def frame(api: Api, title: str, current: str) -> Generator[None]:
    """Draw the frame; the block draws the page's content."""
    ui.page_title(f"{title} · Agent gateway")
    ui.colors(primary="#2456c9")
    with ui.header().classes("items-center no-wrap q-py-xs").style("background:#1b2a4a"):
        toggle = ui.button(icon="menu").props('flat color=white aria-label="Navigation"')
        ui.label("Agent gateway").classes("text-lg font-medium").style("color:#fff;white-space:nowrap")
        ui.space()
        ui.label(api.session.role).style("color:#dbe4f5")
        if api.session.credential is not None:
            with ui.element("form").props('method="post" action="sign-out"'):
                ui.button("Sign out").props("flat color=white type=submit no-caps")
    with ui.left_drawer(value=None).props("width=200 breakpoint=900") as drawer:
        toggle.on_click(drawer.toggle)
        with ui.element("nav").props('aria-label="Pages"').classes("w-full"):
            _draw_navigation(api.session.role, current)
    with ui.element("div").classes("page"):
        ui.label(title).classes("text-xl font-medium q-mb-sm").props('role="heading" aria-level="1"')
        yield


def _draw_navigation(role: str, current: str) -> None:
    group = ""
    for entry in NAVIGATION:
        if _RANKS[role] < _RANKS[entry.role]:
            continue
        if entry.group != group:
            group = entry.group
            ui.label(group).classes("nav-group")
        _draw_entry(entry, is_current=entry.path == current)


def _draw_entry(entry: NavigationEntry, *, is_current: bool) -> None:
    link = ui.link(target=entry.path).classes("w-full no-underline")
    if is_current:
        link.props('aria-current="page"')
    with link, ui.row().classes("items-center no-wrap q-px-md q-py-sm w-full"):
        ui.icon(entry.icon).classes("text-lg").props('aria-hidden="true"')
        ui.label(entry.title).classes("font-bold" if is_current else "")


def notify_error(error: ApiError) -> None:
    """Show why the gateway refused a request."""
    ui.notify(str(error), type="negative", multi_line=True, close_button="Close")


def draw_error(error: ApiError, retry: Callable[[], object] | None = None) -> None:
    """Show an error in the page, where its content would be."""
    with ui.element("div").classes("card").props('role="alert"'):
        if error.status == _NOT_SIGNED_IN:
            ui.label("The gateway asks for a key or token.")
            ui.link("Sign in", "/sign-in").classes("plain-link")
            return
        ui.label(str(error))
        if retry is not None:
            ui.button("Try again", on_click=retry).props("flat no-caps")
