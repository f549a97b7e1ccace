"""Markdown of models and tools as HTML without anything live."""

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from typing import Any, cast

from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name  # pyright: ignore[reportUnknownVariableType]
from pygments.util import ClassNotFound

MAX_MARKDOWN_CHARACTERS = 200_000
"""Limit of rendered text.

Longer text is shown as it is: rendering would block the event loop.
"""
_MAX_HIGHLIGHTED_CHARACTERS = 20_000
_FORMATTER = cast(Any, HtmlFormatter)(nowrap=True)


def render_markdown(text: str) -> str:
    """Render Markdown to HTML.

    HTML in the text is escaped, images are their descriptions: their addresses could carry data away.
    """
    return _get_renderer().render(text)


def build_code_style() -> str:
    """Return the CSS of highlighted code, in light and dark."""
    formatter = cast(Any, HtmlFormatter)
    light = formatter(style="friendly").get_style_defs(".markdown pre")
    dark = formatter(style="github-dark").get_style_defs(".body--dark .markdown pre")
    return f"{light}\n{dark}"


@lru_cache(maxsize=1)
def _get_renderer() -> MarkdownIt:
    renderer = MarkdownIt("commonmark", {"html": False, "linkify": False, "highlight": _highlight_code})
    renderer.enable("table").enable("strikethrough").disable("image")
    renderer.add_render_rule("link_open", _render_link)
    return renderer


def _render_link(_renderer: object, tokens: Sequence[Token], index: int, _options: object, _environment: object) -> str:
    href = str(tokens[index].attrGet("href") or "")
    if not href.startswith(("http://", "https://", "mailto:")):
        return "<a>"
    return f'<a href="{escape(href)}" target="_blank" rel="noopener noreferrer nofollow">'


def _highlight_code(code: str, language: str, _attributes: str) -> str:
    if not language or len(code) > _MAX_HIGHLIGHTED_CHARACTERS:
        return ""
    try:
        return highlight(code, get_lexer_by_name(language), _FORMATTER)
    except ClassNotFound:
        return ""
