import asyncio
import gzip
import socket

import pytest
from aiohttp import web

from gateway_runtime.public_addresses import Address
from tests.call_counter import count_function_calls
from tests.tools_server.conftest import Handler, closed_port, serve_web
from tools_server.fetch_page import MAX_BYTES, MAX_CHARACTERS, FetchError, PageFetcher
from tools_server.page_text import extract_text

ARTICLE = (
    "<html><head><title>Of\n cats</title><script>var secret = 1</script></head><body><nav><a href='/'>Menu</a></nav>"
    "<article><h1>Cats</h1>"
    + "".join(f"<p>Cats sleep a lot, and this is sentence number {n} about them.</p>" for n in range(20))
    + "</article></body></html>"
)


def anywhere(_address: Address, _port: int) -> bool:
    return True


def answer(body: str | bytes, content_type: str = "text/html; charset=utf-8", status: int = 200) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        data = body.encode() if isinstance(body, str) else body
        return web.Response(body=data, status=status, headers={"Content-Type": content_type})

    return handler


async def fetch(handler: Handler, path: str = "/") -> object:
    async with serve_web(handler) as address:
        return await PageFetcher(anywhere).fetch_url(address + path)


async def refusal(handler: Handler, path: str = "/") -> str:
    with pytest.raises(FetchError) as refused:
        await fetch(handler, path)
    return str(refused.value)


async def test_page_is_its_readable_text() -> None:
    async with serve_web(answer(ARTICLE)) as address:
        page = await PageFetcher(anywhere).fetch_url(f"{address}/cats")
    assert page.title == "Of cats"
    assert page.url == f"{address}/cats"
    assert "sentence number 19" in page.text
    assert "secret" not in page.text
    assert "<p>" not in page.text
    assert not page.truncated


async def test_page_without_main_text_is_all_its_text() -> None:
    async with serve_web(answer("<body><b>Just</b> this<script>no</script>")) as address:
        page = await PageFetcher(anywhere).fetch_url(address)
    assert page.text.split() == ["Just", "this"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain", b"caf\xc3\xa9"),
        ("text/plain; charset=iso-8859-1", b"caf\xe9"),
        ("application/json", b'"caf\xc3\xa9"'),
        ("application/atom+xml", b"<a>caf\xc3\xa9</a>"),
        ("text/html", b"<meta charset=windows-1252><p>caf\xe9</p>"),
        ("text/plain; charset=punycode", b"caf\xc3\xa9"),
        ("text/plain; charset=zlib", b"caf\xc3\xa9"),
    ],
)
async def test_text_is_decoded_as_it_was_declared(content_type: str, body: bytes) -> None:
    async with serve_web(answer(body, content_type)) as address:
        page = await PageFetcher(anywhere).fetch_url(address)
    assert "café" in page.text


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/",
        "http://localhost:8080/",
        "http://[::1]:8080/",
        "http://[::ffff:127.0.0.1]:8080/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[64:ff9b::7f00:1]/",
        "https://192.168.0.1:8443/",
        "http://8.8.8.8:22/",
        "http://192.0.0.192/opc/v2/instance/",
        "http://168.63.129.16/?comp=versions",
        "http://[3fff::1]/",
        "http://[2001:0:4136:e378:8000:63bf:f7f7:f7f7]/",
        "http://192.175.48.42/",
        "http://[2620:4f:8000::42]/",
    ],
)
async def test_address_that_is_not_public_is_never_connected_to(url: str) -> None:
    with pytest.raises(FetchError) as refused:
        await PageFetcher().fetch_url(url)
    assert "not public" in str(refused.value)


@pytest.mark.parametrize(
    "host",
    [
        "0",
        "0x7f000001",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "[fe80::1%25lo]",
        "\uff11\uff12\uff17.0.0.1",
        "127\u30020\u30020\u30021",
    ],
)
async def test_oddly_written_loopback_address_is_refused(host: str) -> None:
    async with serve_web(answer("secret", "text/plain")) as address:
        with pytest.raises(FetchError):
            await PageFetcher(lambda ip, _port: not ip.is_loopback and not ip.is_unspecified).fetch_url(
                address.replace("127.0.0.1", host)
            )


async def test_loopback_server_is_not_asked() -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text="secret")

    async with serve_web(handler) as address:
        with pytest.raises(FetchError):
            await PageFetcher(lambda ip, _port: not ip.is_loopback).fetch_url(address)
    assert asked == []


@pytest.mark.parametrize("where", ["http://127.0.0.2:{port}/inside", "//127.0.0.2:{port}/inside", "file:///etc/passwd"])
async def test_redirect_to_a_forbidden_address_is_refused(where: str) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        assert request.url.port is not None
        raise web.HTTPFound(where.format(port=request.url.port))

    async with serve_web(handler) as address:
        with pytest.raises(FetchError):
            await PageFetcher(lambda ip, _port: str(ip) == "127.0.0.1").fetch_url(f"{address}/start")
    assert asked == ["/start"]


async def test_name_that_resolves_to_a_forbidden_address_later_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve the name to another address each time.

    The checked address is the one of the connection.
    """
    answers = iter(["8.8.8.8", "127.0.0.1"])
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda _host, port, *_more: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))],
    )
    checked: list[str] = []

    def record_and_reject(address: Address, _port: int) -> bool:
        checked.append(str(address))
        return False

    fetcher = PageFetcher(record_and_reject)
    for _ in range(2):
        with pytest.raises(FetchError):
            await fetcher.fetch_url("http://rebinding.example/")
    assert checked == ["8.8.8.8", "127.0.0.1"]


async def test_redirects_are_followed_to_the_page() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/end":
            return web.Response(text="arrived")
        raise web.HTTPMovedPermanently("/end")

    async with serve_web(handler) as address:
        page = await PageFetcher(anywhere).fetch_url(f"{address}/start")
    assert (page.text, page.url) == ("arrived", f"{address}/end")


async def test_endless_redirects_are_given_up() -> None:
    async def handler(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/again")

    assert "redirects more than 5 times" in await refusal(handler)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (answer("x" * (MAX_BYTES + 1)), "larger than 2 MB"),
        (answer(b"%PDF-1.7", "application/pdf"), "application/pdf, which is not text"),
        (answer("gone", status=404), "status 404"),
    ],
    ids=["large", "pdf", "missing"],
)
async def test_page_that_cannot_be_read_is_refused(handler: Handler, reason: str) -> None:
    assert reason in await refusal(handler)


async def test_compressed_bomb_is_cut_off_where_it_is_too_large() -> None:
    bomb = gzip.compress(b"\0" * (200 * 1024 * 1024))

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Type": "text/plain", "Content-Encoding": "gzip"})

    assert "larger than 2 MB" in await refusal(handler)


async def test_slow_page_is_given_up_in_time() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.02)

    async with serve_web(handler) as address:
        with pytest.raises(FetchError, match="did not arrive in time"):
            await PageFetcher(anywhere, total_seconds=0.3).fetch_url(address)


async def test_long_text_is_cut() -> None:
    async with serve_web(answer("x" * (MAX_CHARACTERS + 1), "text/plain")) as address:
        page = await PageFetcher(anywhere).fetch_url(address)
    assert (len(page.text), page.truncated) == (MAX_CHARACTERS, True)


@pytest.mark.parametrize("part", ["<script ", "<title>", "<", "<!--", "<style>", "&#", "<div>"])
async def test_work_for_a_hostile_page_grows_at_most_with_its_length(part: str) -> None:
    extract_text(part)  # imports the parser
    with count_function_calls() as calls_for_one:
        extract_text(part * 1_000)
    with count_function_calls() as calls_for_eight:
        extract_text(part * 8_000)
    assert calls_for_one
    assert calls_for_eight.total() < 10 * calls_for_one.total()  # quadratic work would be 64 times as much
    await fetch(answer(part * 50_000))  # in quadratic time within a regular expression it would exceed the test's limit


async def test_unreachable_server_is_reported() -> None:
    with pytest.raises(FetchError, match="cannot be reached"):
        await PageFetcher(anywhere).fetch_url(f"http://127.0.0.1:{closed_port()}/")


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com/", "file:///etc/passwd", "example.com", "", "http://", "http://u:p@8.8.8.8/", "http://[/"],
)
async def test_what_is_not_a_web_address_is_refused(url: str) -> None:
    with pytest.raises(FetchError):
        await PageFetcher().fetch_url(url)
