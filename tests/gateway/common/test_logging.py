"""Lines of the log."""

import io
import json
import logging
from collections.abc import Generator

import pytest

from gateway.common.logging import _LineLogger, configure_logging, get_logger


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Generator[io.StringIO]:
    """Lines in JSON."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging(json=True)
    stream = io.StringIO()
    monkeypatch.setattr(_LineLogger.handler, "stream", stream)
    yield stream
    configure_logging(json=True)
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    "secret",
    [
        "gsk_0123456789abcdef",
        "sk-0123456789abcdef",
        "tvly-0123456789abcdef",
        "agw_01234567_89abcdef89abcdef",
        "eyJhbGciOiJIUzI1NiJ9.e30.abc",
        "Bearer abcdefghijkl",
        "Basic dXNlcjpwYXNz",
        "someone:password",
    ],
)
@pytest.mark.parametrize("is_own", [True, False], ids=["structlog", "standard library"])
def test_secret_is_in_no_line(lines: io.StringIO, secret: str, is_own: bool) -> None:
    text = f"https://{secret}@db.example/x" if ":" in secret else f"before {secret} behind"
    if is_own:
        get_logger("gateway.test").warning("failed", reason=text)
    else:
        logging.getLogger("library").warning(text)
    (line,) = lines.getvalue().splitlines()
    assert secret not in line
    assert "[redacted]" in json.loads(line)["reason" if is_own else "event"]


def test_values_that_json_lacks_are_logged_as_text(lines: io.StringIO) -> None:
    get_logger("gateway.test").info("odd", value={1, 2}, text="\ud800\u202e", number=float("nan"))
    (line,) = lines.getvalue().splitlines()
    assert line.isascii()
    assert json.loads(line)["value"] == "{1, 2}"


def test_libraries_do_not_log_at_debug(lines: io.StringIO) -> None:
    """Debug lines of libraries have prompts, headers and bytes."""
    configure_logging(json=True, level="debug")
    _LineLogger.handler.setStream(lines)
    for name in ("httpcore2.http11", "groq._base_client", "asyncio", "library.that.nobody.listed"):
        logging.getLogger(name).debug("receive_response_headers set-cookie=secret")
    assert lines.getvalue() == ""
    get_logger("gateway.test").debug("own")
    logging.getLogger("gateway_runtime.test").debug("own")
    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == ["own", "own"]
    configure_logging(json=True, level="ERROR")
    _LineLogger.handler.setStream(lines)
    get_logger("gateway.test").warning("hidden")
    logging.getLogger("library").warning("hidden")
    assert "hidden" not in lines.getvalue()
