"""The authorization server of hosts, and a browser for its forms.

The server is npm's `oidc-provider`.
"""

import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import aiohttp

from tests.e2e.node import NODE, NODE_22
from tests.e2e.running_stack import ROOT
from tests.stack import find_free_port

_MAX_PAGES = 20
_CURSOR_MOVE = re.compile(r"\x1b\[\d*G")
"""A blank, as some hosts write it in a terminal."""
_TERMINAL_CODE = re.compile(r"\x1b(\[[0-9;?<>=]*[A-Za-z]|\][^\x07]*\x07|[78])")


class AuthorizationServer:
    """A running `oidc-provider`, which takes commands on its standard input."""

    def __init__(self, process: asyncio.subprocess.Process, issuer: str) -> None:
        self._process = process
        self._lock = asyncio.Lock()
        self.issuer = issuer

    async def send_command(self, name: str, *values: Any) -> Any:
        """Send a command of `tests/node/authorization_server.mjs`; return its result."""
        assert self._process.stdin is not None
        async with self._lock, asyncio.timeout(30):
            self._process.stdin.write(json.dumps([name, *values]).encode() + b"\n")
            return json.loads(await _read_line(self._process))

    async def read_log(self, kind: str) -> list[dict[str, Any]]:
        """Return the entries of a kind: `registered`, `issued`, `grant` or `error`."""
        return [entry for entry in await self.send_command("log") if kind in entry]


@asynccontextmanager
async def run_authorization_server() -> AsyncGenerator[AuthorizationServer]:
    process = await asyncio.create_subprocess_exec(
        *(str(NODE_22), "authorization_server.mjs", str(find_free_port())),
        cwd=NODE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**20,
    )
    try:
        async with asyncio.timeout(60):
            issuer = await _read_line(process)
        yield AuthorizationServer(process, issuer)
    finally:
        process.kill()
        await process.wait()


async def visit_sign_in(url: str, user: str) -> str:
    """Sign in and consent as a person does in a browser.

    Follows redirects to the address of the host, and calls that too if the host listens. Return that address.
    """
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an IP address
    async with aiohttp.ClientSession(cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=60)) as browser:
        form: dict[str, str] | None = None
        origin = urljoin(url, "/")
        for _ in range(_MAX_PAGES):
            method = "GET" if form is None else "POST"
            if not url.startswith(origin):
                with suppress(aiohttp.ClientConnectorError):
                    await browser.get(url)
                return url
            async with browser.request(method, url, data=form, allow_redirects=False) as response:
                page = await response.text()
            form = None
            if "location" in response.headers:
                url = urljoin(url, response.headers["location"])
            elif (action := re.search(r'<form[^>]* action="([^"]+)"', page)) is not None:
                url = urljoin(url, unescape(action[1]))
                form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
                if form["prompt"] == "login":
                    form |= {"login": user, "password": "any"}
            else:
                raise AssertionError(f"{response.status}: {page[:2_000]}")
    raise AssertionError(f"more than {_MAX_PAGES} pages, the last one {url}")


async def sign_in_by_hand(
    server: AuthorizationServer, resource: str | None, *, scope: str = "tools", token: str = "access_token"
) -> dict[str, str]:
    """Return headers with a token for a resource.

    Registers a client of its own."""
    redirect = f"http://127.0.0.1:{find_free_port()}/callback"
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    client = {"redirect_uris": [redirect], "token_endpoint_auth_method": "none", "application_type": "native"}
    named = {} if resource is None else {"resource": resource}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), raise_for_status=True) as session:
        async with session.post(f"{server.issuer}/reg", json=client) as response:
            client_id = (await response.json())["client_id"]
        proof = {"code_challenge": challenge, "code_challenge_method": "S256"}
        query = {"client_id": client_id, "response_type": "code", "redirect_uri": redirect, "scope": scope, **proof}
        url = f"{server.issuer}/auth?{urlencode(query | named)}"
        landed = await visit_sign_in(url, "ada")
        form = {"grant_type": "authorization_code", "client_id": client_id, "redirect_uri": redirect}
        form |= {"code": parse_qs(urlsplit(landed).query)["code"][0], "code_verifier": verifier, **named}
        async with session.post(f"{server.issuer}/token", data=form) as response:
            return {"Authorization": f"Bearer {(await response.json())[token]}"}


async def run_host(server: AuthorizationServer, *command: str, cwd: Path = ROOT, **settings: str) -> str:
    """Run a host in a terminal; return its output.

    Ada signs in at the addresses that it prints. `settings` are its environment beside PATH.
    """
    host_end, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], "TERM": "dumb", **settings},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        cwd=cwd,
    )
    os.close(terminal)
    try:
        async with asyncio.timeout(90):
            output = await visit_printed_addresses(server, host_end, "ada")
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = _TERMINAL_CODE.sub("", _CURSOR_MOVE.sub(" ", output)).strip()
    assert status == 0, text
    return text


async def visit_printed_addresses(server: AuthorizationServer, output_end: int, user: str) -> str:
    """Sign in at the addresses in a host's output; return the output.

    `output_end` is the file descriptor to read from, which is closed.
    """
    reader = asyncio.StreamReader()
    file = os.fdopen(output_end, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), file
    )
    address = re.compile(re.escape(f"{server.issuer}/auth?") + r"[^\s\x07\x1b]+(?=[\s\x07\x1b])")
    output = ""
    visited: set[str] = set()
    try:
        with suppress(OSError):  # the terminal of a process that has ended
            while chunk := await reader.read(65_536):
                output += chunk.decode(errors="replace")
                for url in set(address.findall(output)) - visited:
                    visited.add(url)
                    await visit_sign_in(url, user)
    except asyncio.CancelledError:
        print(output)
        raise
    finally:
        transport.close()
    return output


async def _read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert line, "the authorization server has ended"
    return line.decode().strip()
