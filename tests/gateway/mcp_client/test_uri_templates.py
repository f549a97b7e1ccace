"""Matching of URIs with the templates of servers."""

import asyncio
import random
import re
from typing import Any

import mcp.types as t
import pytest

from gateway.domain.errors import NotFound
from gateway.domain.messages import Principal
from gateway.mcp_client.server_config import ServerConfig
from gateway.mcp_client.server_items.requests import MAX_SERVER_TEMPLATE_LENGTH, find_resource_server
from gateway.mcp_client.uri_templates import UriMatcher
from gateway.ports.tools import ItemKind
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
    "queries": "x://" + "{?a,b,c}" * 200,
    "names": "x://{?" + ",".join(["a" * 6] * 250) + "}",
    "prefixes": "x://" + "{a:9999}" * 200,
    "path": "x://" + "{/a,b,c,d}" * 180,
    "fragments": "x://" + "{#a}" * 400,
}


RFC_EXAMPLES = """
{var} value
{hello} Hello%20World%21
{half} 50%25
{x,y} 1024,768
{x,hello,y} 1024,Hello%20World%21,768
{var:3} val
{var:30} value
{list} red,green,blue
{list*} red,green,blue
{keys} semi,%3B,dot,.,comma,%2C
{keys*} semi=%3B,dot=.,comma=%2C
{+var} value
{+hello} Hello%20World!
{base}index http%3A%2F%2Fexample.com%2Fhome%2Findex
{+base}index http://example.com/home/index
{+path}/here /foo/bar/here
here?ref={+path} here?ref=/foo/bar
up{+path}{var}/here up/foo/barvalue/here
{+x,hello,y} 1024,Hello%20World!,768
{+path,x}/here /foo/bar,1024/here
{+path:6}/here /foo/b/here
{+list} red,green,blue
{+keys*} semi=;,dot=.,comma=,
{#var} #value
{#x,hello,y} #1024,Hello%20World!,768
{#path,x}/here #/foo/bar,1024/here
{#path:6}/here #/foo/b/here
{#keys*} #semi=;,dot=.,comma=,
foo{#empty} foo#
foo{#undef} foo
{.who} .fred
{.who,who} .fred.fred
{.half,who} .50%25.fred
www{.dom*} www.example.com
X{.var} X.value
X{.empty} X.
X{.undef} X
X{.var:3} X.val
X{.list} X.red,green,blue
X{.list*} X.red.green.blue
X{.keys*} X.semi=%3B.dot=..comma=%2C
{/who} /fred
{/who,who} /fred/fred
{/half,who} /50%25/fred
{/var,empty} /value/
{/var,undef} /value
{/var,x}/here /value/1024/here
{/var:1,var} /v/value
{/list} /red,green,blue
{/list*} /red/green/blue
{/list*,path:4} /red/green/blue/%2Ffoo
{/keys*} /semi=%3B/dot=./comma=%2C
{;who} ;who=fred
{;half} ;half=50%25
{;empty} ;empty
{;v,empty,who} ;v=6;empty;who=fred
{;v,bar,who} ;v=6;who=fred
{;x,y} ;x=1024;y=768
{;x,y,empty} ;x=1024;y=768;empty
{;x,y,undef} ;x=1024;y=768
{;hello:5} ;hello=Hello
{;list} ;list=red,green,blue
{;list*} ;list=red;list=green;list=blue
{;keys*} ;semi=%3B;dot=.;comma=%2C
{?who} ?who=fred
{?half} ?half=50%25
{?x,y} ?x=1024&y=768
{?x,y,empty} ?x=1024&y=768&empty=
{?x,y,undef} ?x=1024&y=768
{?var:3} ?var=val
{?list} ?list=red,green,blue
{?list*} ?list=red&list=green&list=blue
{?keys*} ?semi=%3B&dot=.&comma=%2C
{&who} &who=fred
?fixed=yes{&x} ?fixed=yes&x=1024
{&x,y,empty} &x=1024&y=768&empty=
{&var:3} &var=val
{&list*} &list=red&list=green&list=blue
{&keys*} &semi=%3B&dot=.&comma=%2C
"""
"""Templates and expansions of RFC 6570, sections 3.2.2 to 3.2.9."""


PARAMETERS = r"(x|y)(=[^&#]*)?(&(x|y)(=[^&#]*)?)*"
PATTERNS = {
    "{owner}": "[^/?#]+",
    "{name}": "[^/?#]+",
    "{a}": "[^/?#]+",
    "{b}": "[^/?#]+",
    "{x}": "[^/?#]+",
    "{x:2}": "[^/?#]{1,2}",
    "{+x}": ".+",
    "{+path}": ".+",
    "{#x}": "(#.*)?",
    "{.x}": r"(\.[^/?#]*)?",
    "{/x,y}": "(/[^/?#]*){0,2}",
    "{/x*}": "(/[^?#]*)?",
    "{?x,y}": rf"(\?{PARAMETERS})?",
    "{&x,y}": f"(&{PARAMETERS})?",
    "{?x*}": r"(\?[^#]*)?",
    "{;x}": r"(;x(=[^;/?#]*)?(;x(=[^;/?#]*)?)*)?",
}


def matches_by_regex(uri: str, template: str) -> bool:
    pattern = "".join(PATTERNS.get(part) or re.escape(part) for part in re.split(r"(\{[^{}]*\})", template))
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
        template = "".join(chance.choices(["a", "b", "/", "{x}", "{x:2}", "{+x}"], k=chance.randint(0, 6)))
        assert UriMatcher(uri).matches(template) is matches_by_regex(uri, template), (uri, template)


@pytest.mark.parametrize("seed", range(20))
def test_random_uris_match_every_operator_as_by_a_regular_expression(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        uri = "".join(chance.choices(["a", "x", "x=", "y", "/", ".", ";", "?", "&", "#"], k=chance.randint(0, 10)))
        path = chance.choices(["a", "x", "/", "{x}", "{.x}", "{/x,y}", "{/x*}"], k=chance.randint(0, 3))
        ends = [["", "{;x}", "{+x}"], ["", "{?x,y}", "{?x*}", "?x=a{&x,y}"], ["", "{#x}"]]
        template = "".join([*path, *(chance.choice(end) for end in ends)])
        assert UriMatcher(uri).matches(template) is matches_by_regex(uri, template), (uri, template)


@pytest.mark.parametrize("line", RFC_EXAMPLES.split("\n")[1:-1])
def test_expansion_of_the_rfc_matches_its_template(line: str) -> None:
    template, expansion = line.split(" ")
    assert UriMatcher(expansion).matches(template)


@pytest.mark.parametrize(
    ("uri", "template", "expected"),
    [
        ("x://a?b=1", "x://{id}", False),
        ("x://a#b", "x://{id}", False),
        ("x://abcd", "x://{id:3}", False),
        ("x://%E2%82%AC%E2%82%AC", "x://{id:2}", True),
        ("x://l", "x://l{?q,limit}", True),
        ("x://l?limit=5&q=a", "x://l{?q,limit}", True),
        ("x://l?other=1", "x://l{?q}", False),
        ("x://l?q=1&other=2", "x://l{?q}", False),
        ("x://l?qq=1", "x://l{?q}", False),
        ("x://l&q=1", "x://l{?q}", False),
        ("x://l?q=1#f", "x://l{?q}{#f}", True),
        ("x://f/a/b/c", "x://f{/a,b}", False),
        ("x://f/a/b/c", "x://f{/path*}", True),
        ("x://f#a", "x://f{/path*}", False),
        ("x://f;z=1", "x://f{;v}", False),
        ("x://a.b/c", "x://a{.e}", False),
    ],
)
def test_uri_matches_only_what_a_template_can_expand_to(uri: str, template: str, expected: bool) -> None:
    assert UriMatcher(uri).matches(template) is expected


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES.values(), ids=HOSTILE_TEMPLATES.keys())
def test_work_for_a_template_does_not_depend_on_the_uri(template: str) -> None:
    for uri in ("x://" + "a" * 3_000 + "!", "x://" + "a/" * 1_500 + "!", "x://?" + "a=1&" * 700):
        matcher = UriMatcher(uri)
        with count_function_calls() as calls:
            matcher.matches(template)
        assert calls.total() < 5 * len(template)


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


async def test_templates_of_a_server_have_a_bound_in_all_and_others_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each template is as costly as one may be."""
    template, passes, matches = "x://" + "{a:9999}" * 240, [0], UriMatcher.matches
    templates = [{"uriTemplate": f"{template}{number}", "server": "hostile"} for number in range(1_000)]
    templates.append({"uriTemplate": "y://{name}", "server": "plain"})

    async def list_items(kind: ItemKind, _principal: Principal) -> list[dict[str, Any]]:
        return templates if kind == "resource_templates" else []

    def count(matcher: UriMatcher, compared: str) -> bool:
        passes[-1] += len(compared)
        return matches(matcher, compared)

    async def begin_passes() -> None:
        while True:
            passes.append(0)
            await asyncio.sleep(0)

    monkeypatch.setattr(UriMatcher, "matches", count)
    counting = asyncio.create_task(begin_passes())
    server = await find_resource_server(list_items, "y://" + "a" * 3_000, Principal("ada"))
    counting.cancel()
    assert server == "plain"
    assert sum(passes) <= MAX_SERVER_TEMPLATE_LENGTH + 100
    assert max(passes) <= 10_000
