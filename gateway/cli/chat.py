"""`agent-gateway chat`: talks to a running gateway, shows tokens and tool calls as they come."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncGenerator, Callable
from typing import Any, TextIO

import aiohttp

_DIM, _RED, _PLAIN = "\033[2m", "\033[31m", "\033[0m"


class ChatFailed(Exception):
    """The gateway refused, or could not be reached. `str()` is for the terminal."""


class Terminal:
    """One conversation with the gateway at `url`. Answers go to `out`, all else to `side`.

    `read` asks the person at the terminal for a line; without it (nobody is there) what a turn asks is declined.
    `trusted` says whose certificates are taken (None: those that this machine trusts).
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        model: str | None,
        out: TextIO,
        side: TextIO,
        read: Callable[[str], str] | None = None,
        trusted: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._out = out
        self._side = side
        self._read = read
        self._trusted = trusted
        self._conversation = "new"
        self._at_line_start = True

    async def ask(self, prompt: str) -> None:
        """Send one message of the conversation and print the turn.

        Raises:
            ChatFailed: the turn did not complete.
        """
        body = {"messages": [{"role": "user", "content": prompt}], "conversation_id": self._conversation}
        if self._model:
            body["model"] = self._model
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=60)
        try:
            connector = aiohttp.TCPConnector(ssl=self._trusted or True)
            async with aiohttp.ClientSession(
                self._url, timeout=timeout, headers=self._headers, connector=connector
            ) as session:
                path = await self._print(session, session.post("/api/v1/chat/stream", json=body))
                while path is not None:
                    path = await self._print(session, session.get(path))
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
            raise ChatFailed(f"The certificate of {self._url} is not trusted: {reason}.") from None
        except aiohttp.ClientConnectorError:
            raise ChatFailed(f"No gateway answers at {self._url}. Start one with `make run`.") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ChatFailed(f"The connection broke: {type(error).__name__}.") from None
        finally:
            self._newline()

    async def _print(self, session: aiohttp.ClientSession, request: Any) -> str | None:
        """Show a stream to its end; where it goes on, if the turn had to wait for its person."""
        last = 0
        async with request as response:
            if response.status != 200:
                raise ChatFailed(_error_line(response.status, await response.text()))
            turn = f"/api/v1/turns/{response.headers['X-Turn-Id']}"
            async for number, event in _events(response.content):
                last = number or last
                if event.get("reason") == "input_required":
                    return f"{turn}/events?after={last}"
                self._show(event)
                if event.get("type") == "input.required":
                    await self._answer(session, f"{turn}/input", event)
        return None

    async def _answer(self, session: aiohttp.ClientSession, path: str, asked: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"action": "decline"}
        if self._read is None:
            self._note("? declined: nobody is at this terminal")
        else:
            answer = await asyncio.to_thread(_answer_of, asked, self._read)
        async with session.post(path, json={"input_id": asked["input_id"], **answer}) as response:
            if response.status != 200:
                self._note(f"! {_error_line(response.status, await response.text())}")
                if response.status == 422 and self._read is not None:
                    await self._answer(session, path, asked)

    def _show(self, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "turn.started":
                self._conversation = event["conversation_id"] or self._conversation
                for warning in event.get("warnings", ()):
                    self._note(f"! {warning}")
            case "text.delta":
                self._write(event["text"])
            case "tool.call":
                self._note(f"→ {event['tool']} {json.dumps(event['arguments'], ensure_ascii=False)}")
            case "tool.result":
                self._note(f"← {event['outcome']} {_shorten(_text(event['content']))} ({event['duration_ms']:.0f} ms)")
            case "input.required":
                self._note(f"? {event['message']}")
            case "model.retry":
                self._note(f"… asking the model again: {event['reason']}")
            case "turn.failed" | "turn.cancelled":
                raise ChatFailed(f"{event['error']['message']} [{event['error']['code']}]")
            case None:
                raise ChatFailed(f"The gateway closed the stream: {event.get('reason')}.")
            case _:
                pass  # nothing that a person at a terminal would want to see

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
        self._at_line_start = text.endswith("\n")

    def _note(self, text: str) -> None:
        self._newline()
        colour = self._side.isatty()
        print(f"{_DIM}{text}{_PLAIN}" if colour else text, file=self._side, flush=True)

    def _newline(self) -> None:
        if not self._at_line_start:
            self._write("\n")


async def _events(lines: aiohttp.StreamReader) -> AsyncGenerator[tuple[int | None, dict[str, Any]]]:
    """The number and the JSON of each frame, until `[DONE]`."""
    number = None
    async for line in lines:
        if line.startswith(b"id: "):
            number = int(line[4:])
        elif line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield number, json.loads(line[6:])
            number = None


def _answer_of(asked: dict[str, Any], read: Callable[[str], str]) -> dict[str, Any]:
    """What the person says: yes or no to an approval and to a page to visit, a line for each field of a question."""
    if asked["kind"] != "question":
        yes = read("  [y/N] ").strip().lower() in ("y", "yes")
        return {"action": "accept", "content": {}} if yes else {"action": "decline"}
    content: dict[str, Any] = {}
    schema: dict[str, Any] = asked["schema"] or {}
    fields: dict[str, dict[str, Any]] = schema.get("properties", {})
    for name, field in fields.items():
        line = read(f"  {field.get('title') or name} (empty: decline): ").strip()
        if not line:
            return {"action": "decline"}
        content[name] = _typed(line, field)
    return {"action": "accept", "content": content}


def _typed(line: str, schema: dict[str, Any]) -> Any:
    if schema.get("type", "string") == "string":
        return line
    try:
        return json.loads(line.lower())
    except ValueError:
        return line


def _error_line(status: int, body: str) -> str:
    try:
        error = json.loads(body)["error"]
        return f"{error['message']} [{error['code']}]"
    except (ValueError, KeyError, TypeError):
        return f"The gateway answered with status {status}."


def _text(content: list[dict[str, Any]]) -> str:
    return " ".join(str(block.get("text", f"[{block.get('type')}]")) for block in content)


def _shorten(text: str, most: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def run(
    prompt: str | None, url: str, *, api_key: str | None, model: str | None, trusted: ssl.SSLContext | None = None
) -> int:
    """Ask once, or read prompts until the input ends. Returns the exit code."""
    read = input if sys.stdin.isatty() else None
    terminal = Terminal(url, api_key=api_key, model=model, out=sys.stdout, side=sys.stderr, read=read, trusted=trusted)
    if prompt is not None:
        return _ask(terminal, prompt)
    code = 0
    while (line := _read_line()) is not None:
        if line in ("exit", "quit"):
            break
        if line:
            code = _ask(terminal, line)
    return 0 if sys.stdin.isatty() else code


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _ask(terminal: Terminal, prompt: str) -> int:
    """Ctrl-C stops this answer (the gateway cancels the turn), not the conversation."""
    try:
        asyncio.run(terminal.ask(prompt))
    except ChatFailed as error:
        print(f"{_RED}{error}{_PLAIN}" if sys.stderr.isatty() else error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
