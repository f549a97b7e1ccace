"""`agent-gateway chat`.

Sends prompts to a running gateway and prints tokens and tool calls as they arrive.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TextIO

import aiohttp

from gateway.common.sanitize import escape_for_terminal
from gateway.domain.messages import JsonObject

_KEY_ADVICE = (
    "\nPass a key: `agent-gateway chat --key agw_…`. If you have none, make an admin's at the gateway's machine: "
    "`agent-gateway keys recover`."
)
_DIM, _RED, _RESET = "\033[2m", "\033[31m", "\033[0m"
_MAX_LINE_BYTES = 80 * 1024 * 1024
"""Longest line of a stream.

An event is at most as long as all events of a turn, by default 64 MiB.
"""
_HELP = """\
/help   show these commands
/new    start a new conversation
/exit   end the chat, as Ctrl-D does
Ctrl-C cancels the turn that runs. Any other line is sent to the model.
"""


class ChatError(Exception):
    """Error of a gateway that refused or cannot be reached.

    `str()` is for the terminal.
    """


class ChatTerminal:
    """A conversation with the gateway at `url`.

    Answers go to `output`, all other lines to `notes`. `read_line` prompts the person at the terminal; without it,
    questions of a turn are declined. `tls_context` None: the machine's own trust store.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        model: str | None,
        output: TextIO,
        notes: TextIO,
        read_line: Callable[[str], str] | None = None,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._output = output
        self._notes = notes
        self._read_line = read_line
        self._tls_context = tls_context
        self._conversation = "new"
        self._at_line_start = True

    def start_conversation(self) -> None:
        """Begin a new conversation with the next prompt."""
        self._conversation = "new"

    async def send_prompt(self, prompt: str) -> None:
        """Send one message of the conversation and print the turn.

        Raises:
            ChatError: the turn did not complete.
        """
        body = {"messages": [{"role": "user", "content": prompt}], "conversation_id": self._conversation}
        if self._model:
            body["model"] = self._model
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=60)
        try:
            connector = aiohttp.TCPConnector(ssl=self._tls_context or True)
            async with aiohttp.ClientSession(
                self._url, timeout=timeout, headers=self._headers, connector=connector
            ) as session:
                path = await self._print_stream(session, session.post("/api/v1/chat/stream", json=body))
                while path is not None:
                    path = await self._print_stream(session, session.get(path))
        except aiohttp.ClientConnectorCertificateError as error:
            reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
            raise ChatError(f"The certificate of {self._url} is not trusted: {reason}.") from None
        except aiohttp.ClientConnectorError:
            raise ChatError(f"No gateway answers at {self._url}. Start one with `make run`.") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ChatError(f"The connection broke: {type(error).__name__}.") from None
        finally:
            self._start_new_line()

    async def _print_stream(
        self, session: aiohttp.ClientSession, request: AbstractAsyncContextManager[aiohttp.ClientResponse]
    ) -> str | None:
        """Print a stream to its end.

        Return the path where it continues if the turn waited for an answer.
        """
        last = 0
        async with request as response:
            if response.status != 200:
                raise ChatError(_format_error(response.status, await response.text()))
            turn = f"/api/v1/turns/{response.headers['X-Turn-Id']}"
            async for number, event in _iterate_events(response.content):
                last = number or last
                if event.get("reason") == "input_required":
                    return f"{turn}/events?after={last}"
                self._print_event(event)
                if event.get("type") == "input.required":
                    await self._answer_question(session, f"{turn}/input", event)
        return None

    async def _answer_question(self, session: aiohttp.ClientSession, path: str, question: JsonObject) -> None:
        answer: JsonObject = {"action": "decline"}
        if self._read_line is None:
            self._print_note("? declined: this is not an interactive terminal")
        else:
            answer = await asyncio.to_thread(_read_answer, question, self._read_line)
        async with session.post(path, json={"input_id": question["input_id"], **answer}) as response:
            if response.status != 200:
                self._print_note(f"! {_format_error(response.status, await response.text())}")
                if response.status == 422 and self._read_line is not None:
                    await self._answer_question(session, path, question)

    def _print_event(self, event: JsonObject) -> None:
        match event.get("type"):
            case "turn.started":
                self._conversation = event["conversation_id"] or self._conversation
                for warning in event.get("warnings", ()):
                    self._print_note(f"! {warning}")
            case "text.delta":
                self._write_text(event["text"])
            case "tool.call":
                self._print_note(f"→ {event['tool']} {json.dumps(event['arguments'], ensure_ascii=False)}")
            case "tool.result":
                self._print_note(
                    f"← {event['outcome']} {_shorten(_join_text(event['content']))} ({event['duration_ms']:.0f} ms)"
                )
            case "input.required":
                self._print_note(f"? {event['message']}")
            case "model.retry":
                self._print_note(f"… retrying the model: {event['reason']}")
            case "turn.failed" | "turn.cancelled":
                raise ChatError(f"{event['error']['message']} [{event['error']['code']}]")
            case None:
                raise ChatError(f"The gateway closed the stream: {event.get('reason')}.")
            case _:
                pass  # events that a terminal does not show

    def _write_text(self, text: str) -> None:
        text = escape_for_terminal(text)
        self._output.write(text)
        self._output.flush()
        self._at_line_start = text.endswith("\n")

    def _print_note(self, text: str) -> None:
        self._start_new_line()
        text = escape_for_terminal(text)
        colour = self._notes.isatty()
        print(f"{_DIM}{text}{_RESET}" if colour else text, file=self._notes, flush=True)

    def _start_new_line(self) -> None:
        if not self._at_line_start:
            self._write_text("\n")


async def _iterate_events(stream: aiohttp.StreamReader) -> AsyncGenerator[tuple[int | None, JsonObject]]:
    """Yield the number and the JSON of each frame, until `[DONE]`."""
    number = None
    async for line in _iterate_lines(stream):
        if line.startswith(b"id: "):
            number = int(line[4:])
        elif line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
            yield number, json.loads(line[6:])
            number = None


async def _iterate_lines(stream: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
    """Yield each line without its end.

    aiohttp itself refuses lines of more than 128 KiB, and the event of a tool's result may be longer.

    Raises:
        ChatError: a line is longer than any event.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in stream.iter_any():
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield b"".join((*parts, end))
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > _MAX_LINE_BYTES:
            raise ChatError("The gateway sent an event that is too long.")


def _read_answer(question: JsonObject, read_line: Callable[[str], str]) -> JsonObject:
    """Read the answer to a question from the terminal.

    The answer is yes or no for an approval or a page to visit, and a line for each field of a question.
    """
    if question["kind"] != "question":
        yes = read_line("  [y/N] ").strip().lower() in ("y", "yes")
        return {"action": "accept", "content": {}} if yes else {"action": "decline"}
    content: JsonObject = {}
    schema: JsonObject = question["schema"] or {}
    fields: dict[str, JsonObject] = schema.get("properties", {})
    for name, field in fields.items():
        line = read_line(f"  {escape_for_terminal(str(field.get('title') or name))} (empty: decline): ").strip()
        if not line:
            return {"action": "decline"}
        content[name] = _parse_value(line, field)
    return {"action": "accept", "content": content}


def _parse_value(line: str, schema: JsonObject) -> object:
    if schema.get("type", "string") == "string":
        return line
    try:
        return json.loads(line.lower())
    except ValueError:
        return line


def _format_error(status: int, body: str) -> str:
    advice = _KEY_ADVICE if status == 401 else ""
    try:
        error = json.loads(body)["error"]
        return f"{error['message']} [{error['code']}]{advice}"
    except (ValueError, KeyError, TypeError):
        return f"The gateway answered with status {status}."


def _join_text(content: list[JsonObject]) -> str:
    """Join the texts of a result, without the structure behind them."""
    if len(content) > 1 and str(content[-1].get("text", "")).startswith("{"):
        content = content[:-1]
    return " ".join(str(block.get("text", f"[{block.get('type')}]")) for block in content)


def _shorten(text: str, max_length: int = 120) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= max_length else flat[: max_length - 1] + "…"


def run_chat(
    prompt: str | None, url: str, *, api_key: str | None, model: str | None, tls_context: ssl.SSLContext | None = None
) -> int:
    """Send one prompt, or read prompts until the input ends.

    Returns the exit code.
    """
    read_line = input if sys.stdin.isatty() else None
    terminal = ChatTerminal(
        url,
        api_key=api_key,
        model=model,
        output=sys.stdout,
        notes=sys.stderr,
        read_line=read_line,
        tls_context=tls_context,
    )
    if prompt is not None:
        return _send_prompt(terminal, prompt)
    if sys.stdin.isatty():
        print("Type a prompt, /help for the commands, /exit to end.", file=sys.stderr)
    code = 0
    while (line := _read_prompt()) is not None:
        match line.lower():
            case "/exit" | "/quit" | "exit" | "quit":
                break
            case "/help" | "/?":
                print(_HELP, end="", file=sys.stderr)
            case "/new":
                terminal.start_conversation()
            case command if command.startswith("/") and command[1:].isalpha():
                print(f"There is no command {line}. /help lists the commands.", file=sys.stderr)
                code = 2
            case "":
                pass
            case _:
                code = _send_prompt(terminal, line)
    return 0 if sys.stdin.isatty() else code


def _read_prompt() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _send_prompt(terminal: ChatTerminal, prompt: str) -> int:
    """Send one prompt.

    Ctrl-C cancels its turn and not the conversation. Returns the exit code.
    """
    try:
        asyncio.run(terminal.send_prompt(prompt))
    except ChatError as error:
        message = escape_for_terminal(str(error))
        print(f"{_RED}{message}{_RESET}" if sys.stderr.isatty() else message, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
