"""Test of the tool server's log at a terminal."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging
import structlog
from tools_server.log import configure_logging

configure_logging(json=False, level="INFO")
log = structlog.stdlib.get_logger("tools_server.test")
log.warning("event_a", name="x\\x1b]52;c;aGk=\\x07", names=["y\\x9b2J"])
logging.getLogger("library").warning("event_b %s", "z\\x1b[2J")
try:
    raise ValueError("w\\x1b]0;title\\x07")
except ValueError:
    log.exception("event_c")
"""


@pytest.mark.faults
def test_control_characters_do_not_reach_the_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=50)
    shown = ("event_a", "event_b", "event_c", "\\x1b]52", "\\x9b2J", "\\x1b]0")
    assert [text for text in shown if text not in done.stderr] == []
    assert not set(done.stderr) & {"\x1b", "\x07", "\x9b"}
