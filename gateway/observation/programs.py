"""Programs that models write.

Their calls are spans below those of the programs.
"""

import time
from datetime import datetime

from gateway.domain.messages import ToolSpec
from gateway.observation import families as f
from gateway.observation import names as n
from gateway.observation.tools import tool_parent
from gateway.ports.code import (
    ProgramCalls,
    ProgramDiverged,
    ProgramInterface,
    ProgramResult,
    ProgramSession,
    ProgramSuspended,
    Sandbox,
)
from gateway.ports.observer import Observer
from gateway_runtime.redaction.redactor import Redactor
from gateway_runtime.telemetry.content import encode_content

_NAME = "run_python"
_SERVER = "gateway"


class ObservedSandbox(Sandbox):
    """A sandbox whose programs are spans."""

    def __init__(self, sandbox: Sandbox, observer: Observer, redactor: Redactor) -> None:
        self._sandbox = sandbox
        self._observer = observer
        self._redactor = redactor

    @property
    def problem(self) -> str | None:
        return self._sandbox.problem

    def build_interface(self, tools: tuple[ToolSpec, ...]) -> ProgramInterface:
        """See `Sandbox.build_interface`."""
        return self._sandbox.build_interface(tools)

    def create_session(self, interface: ProgramInterface, *, now: datetime, seed: str) -> ProgramSession:
        """See `Sandbox.create_session`."""
        session = self._sandbox.create_session(interface, now=now, seed=seed)
        return _ObservedSession(session, self._observer, self._redactor)


class _ObservedSession(ProgramSession):
    def __init__(self, session: ProgramSession, observer: Observer, redactor: Redactor) -> None:
        self._session = session
        self._observer = observer
        self._redactor = redactor

    async def run(self, code: str, calls: ProgramCalls) -> ProgramResult:
        observer, started_at, outcome = self._observer, time.perf_counter(), "error"
        attributes = {n.OPERATION: "execute_tool", n.TOOL: _NAME, n.TOOL_TYPE: "function"}
        with observer.open_span(f"execute_tool {_NAME}", attributes, parent=tool_parent.get()) as span:
            outer_parent = tool_parent.set(observer.get_trace_headers())
            if observer.captures_content:
                span.set_attributes({n.TOOL_ARGUMENTS: encode_content(self._redactor.redact_text(code))})
            try:
                result = await self._session.run(code, calls)
                outcome = "ok" if result.problem is None else "error"
            except ProgramSuspended:
                outcome = "input_required"
                raise
            except ProgramDiverged:
                outcome = "unknown"
                raise
            finally:
                tool_parent.reset(outer_parent)
                span.set_attributes({n.OUTCOME: outcome})
                observer.increase_counter(f.TOOL_CALLS, 1, _SERVER, _NAME, outcome)
                error_type = "tool_error" if outcome == "error" else ""
                observer.record_value(f.TOOL_DURATION, time.perf_counter() - started_at, _SERVER, _NAME, error_type)
            if outcome == "error":
                span.fail("tool_error")
            return result
