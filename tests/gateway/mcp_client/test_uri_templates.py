"""Matching of URIs with the templates of servers."""

import random
import re

import mcp.types as t
import pytest

from gateway.domain.errors import NotFound
from gateway.domain.messages import Principal
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.uri_templates import UriMatcher
from tests.call_counter import count_function_calls
from tests.gateway.mcp_client.hostile_server import HostileServer
from tests.gateway.mcp_client.test_toolbox import connect_toolbox
from tests.stack import serve_asgi

HOSTILE_TEMPLATES = {
    "any": "x://" + "{+a}a" * 300,
    "segments": "x://" + "{a}a" * 300,
    "adjacent": "x://" + "{+a}" * 400 + "?",
    "mixed": "{+a}" + "{a}/{+b}" * 200,
    "literal": "x://" + "a" * 1_900 + "{+a}?",
    "braces": "x://" + "{" * 1_000 + "}" * 900,
}


def matches_by_regex(uri: str, template: str) -> bool:
    parts = re.split(r"(\{[^{}]*\})", template)
    pattern = "".join((".+" if p[1:2] in "+#*" else "[^/]+") if p.startswith("{") else re.escape(p) for p in parts)
    return re.fullmatch(pattern, uri, re.DOTALL) is not None


@pytest.mark.parametrize(
    ("uri", "template", "expected"),
    [
        ("repo://a/b", "repo://{owner}/{name}", True),
        ("repo://a/b/c", "repo://{owner}/{name}", False),
        ("repo://a/b/c", "repo://{owner}/{+path}", True),
        ("repo://a/", "repo://{owner}/{+path}", False),
        ("repo:///b", "repo://{owner}/{name}", False),
        ("file:///a.txt", "file:///{name}.txt", True),
        ("file:///a.txt.txt", "file:///{name}.txt", True),
        ("file:///.txt", "file:///{name}.txt", False),
        ("x://ab", "x://{a}{b}", True),
        ("x://a", "x://{a}{b}", False),
        ("x://a", "x://a", True),
        ("x://a", "x://", False),
        ("", "", True),
    ],
)
def test_uri_matches_its_template(uri: str, template: str, expected: bool) -> None:
    assert UriMatcher(uri).matches(template) is expected
    assert matches_by_regex(uri, template) is expected


@pytest.mark.parametrize("seed", range(20))
def test_random_uris_match_as_by_a_regular_expression(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        uri = "".join(chance.choices("ab/", k=chance.randint(0, 12)))
        template = "".join(chance.choices(["a", "b", "/", "{x}", "{+x}"], k=chance.randint(0, 6)))
        assert UriMatcher(uri).matches(template) is matches_by_regex(uri, template), (uri, template)


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES.values(), ids=HOSTILE_TEMPLATES.keys())
def test_work_for_a_template_does_not_depend_on_the_uri(template: str) -> None:
    for uri in ("x://" + "a" * 3_000 + "!", "x://" + "a/" * 1_500 + "!"):
        matcher = UriMatcher(uri)
        with count_function_calls() as calls:
            matcher.matches(template)
        assert calls.total() < 3 * len(template)


async def test_templates_of_a_hostile_server_do_not_block_the_reading_of_resources() -> None:
    server = HostileServer()
    server.templates = [
        t.ResourceTemplate(name=f"{name}{i}", uri_template=template)
        for name, template in HOSTILE_TEMPLATES.items()
        for i in range(50)
    ]
    async with (
        serve_asgi(server.create_app()) as url,
        connect_toolbox(ServerConfig(name="t", url=f"{url}/mcp")) as toolbox,
    ):
        with count_function_calls() as calls, pytest.raises(NotFound):
            await toolbox.read_resource("x://" + "a" * 3_000 + "/!", Principal("ada"))
    assert calls.total() < 2_000_000
