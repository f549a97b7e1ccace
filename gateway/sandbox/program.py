"""Programs in Monty, an interpreter of a subset of Python.

It runs in worker processes. The library is imported on first use.
"""

import asyncio
import importlib.util
from contextlib import AsyncExitStack
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import msgspec

from gateway.common.concurrency import LruDict
from gateway.common.logging import get_logger
from gateway.domain.messages import JsonObject, ToolSpec
from gateway.ports.code import CallAnswer, ProgramCalls, ProgramInterface, ProgramResult, ProgramSession, Sandbox
from gateway.sandbox.stubs import PRELUDE, build_stub, name_functions

if TYPE_CHECKING:
    import pydantic_monty as monty

log = get_logger(__name__)

_LIBRARY = "pydantic_monty"
_CHECKOUT_SECONDS = 20.0
_REQUEST_GRACE_SECONDS = 5.0
_MAX_PRINTED_BYTES = 256 * 1024
_MAX_SESSION_BYTES = 4 * 1024 * 1024
_MAX_PROBLEM_CHARS = 4_000
_MAX_STUBS = 2_000
_MAX_LOGGED_CHARS = 200
_FILE = "program.py"
_NOT_INSTALLED = "The package pydantic-monty is not installed: it has no wheel for this platform."
_BUSY = "All sandboxes are busy. Try again, or call the tools without a program."
_LOST = "The sandbox ended. Nothing that the program called is undone, and its variables are lost."

_TOO_DEEP = "(a value that is nested too deeply to be shown)"


class SandboxLimits(msgspec.Struct, frozen=True):
    """Limits of programs.

    `seconds` is the time of a program without its waits; `processes` belong to one worker of the gateway.
    """

    seconds: float = 5.0
    memory_bytes: int = 64 * 1024 * 1024
    calls: int = 200
    processes: int = 4


class MontySandbox(Sandbox):
    """A pool of worker processes, which starts on first use."""

    def __init__(self, limits: SandboxLimits) -> None:
        self._limits = limits
        self._stack = AsyncExitStack()
        self._pool: monty.AsyncMonty | None = None
        self._starting = asyncio.Lock()
        self._stubs: LruDict[str, tuple[ToolSpec, str, str]] = LruDict(_MAX_STUBS)

    @property
    def problem(self) -> str | None:
        return None if _is_installed() else _NOT_INSTALLED

    def build_interface(self, tools: tuple[ToolSpec, ...]) -> ProgramInterface:
        functions = name_functions(tools)
        stubs = {tool.name: self._build_stub(function, tool) for function, tool in zip(functions, tools, strict=True)}
        structured = frozenset(tool.name for tool in tools if tool.output_schema)
        return ProgramInterface(functions, stubs, PRELUDE, structured)

    def _build_stub(self, function: str, tool: ToolSpec) -> str:
        cached = self._stubs.get(tool.name)
        if cached is None or cached[0] is not tool or cached[1] != function:
            cached = self._stubs[tool.name] = (tool, function, build_stub(function, tool))
        return cached[2]

    def create_session(self, interface: ProgramInterface, *, now: datetime, seed: str) -> ProgramSession:
        return _Session(self, self._limits, interface, now=now, seed=seed)

    async def start_pool(self) -> "monty.AsyncMonty":
        """Return the pool; the first call starts it."""
        async with self._starting:
            if self._pool is None:
                library = await asyncio.to_thread(_import_library)
                self._pool = await self._stack.enter_async_context(
                    library.AsyncMonty(
                        min_processes=0,
                        max_processes=self._limits.processes,
                        checkout_timeout=_CHECKOUT_SECONDS,
                        request_timeout=self._limits.seconds + _REQUEST_GRACE_SECONDS,
                    )
                )
            pool = self._pool
            assert pool is not None
            return pool

    async def close(self) -> None:
        """End the worker processes."""
        await self._stack.aclose()


class _Session(ProgramSession):
    """The variables of a turn's programs.

    Between programs they are bytes in this process, so that a turn holds a worker process only while a program runs.
    """

    def __init__(
        self, sandbox: MontySandbox, limits: SandboxLimits, interface: ProgramInterface, *, now: datetime, seed: str
    ) -> None:
        self._sandbox = sandbox
        self._limits = limits
        self._interface = interface
        self._now = now
        self._seed = seed
        self._state: bytes | None = None

    async def run(self, code: str, calls: ProgramCalls) -> ProgramResult:
        library = await asyncio.to_thread(_import_library)
        pool = await self._sandbox.start_pool()
        try:
            async with pool.checkout(**self._make_options()) as session:
                if self._state is not None:
                    await session.load_session(self._state)
                result = await self._run_checked(library, session, code, calls)
                self._state = None if result.is_lost else await _save_variables(library, session)
        except TimeoutError:
            return ProgramResult(problem=_BUSY, outcome="rejected")
        except library.MontyError as error:
            log.warning("sandbox_crashed", error=type(error).__name__, reason=str(error)[:_MAX_LOGGED_CHARS])
            self._state = None
            return ProgramResult(problem=_LOST, outcome="failed", is_lost=True)
        return result if self._state is not None else msgspec.structs.replace(result, is_lost=True)

    def _make_options(self) -> dict[str, Any]:
        limits = self._limits
        return {
            "script_name": _FILE,
            "limits": {
                "max_feed_duration_secs": limits.seconds,
                "max_memory": limits.memory_bytes,
                "max_suspensions": 4 * limits.calls + 100,
            },
            "type_check": True,
            "type_check_stubs": f"{self._interface.prelude}\n\n{self._interface.join_stubs()}",
            "type_check_format": "concise",
            "os_policy": {"datetime": self._now, "random_start": {"seed": self._seed}, "sleep": "zero"},
        }

    async def _run_checked(
        self, library: Any, session: "monty.AsyncMontySession", code: str, calls: ProgramCalls
    ) -> ProgramResult:
        printed = library.CollectString(max_bytes=_MAX_PRINTED_BYTES)
        lookup = dict.fromkeys(self._interface.functions, _never_called)
        run = _Run(library, calls, self._interface, self._limits.calls)
        try:
            snapshot: Any = await session.feed_start(code, external_lookup=lookup, print_callback=printed)
            while not isinstance(snapshot, library.MontyComplete):
                snapshot = await run.continue_from(snapshot)
        except (library.MontySyntaxError, library.MontyTypingError) as error:
            return ProgramResult(problem=_shorten(error.display()), outcome="rejected")
        except (library.MontyRuntimeError, library.MontyConversionError) as error:
            # A limit stops the interpreter anywhere, and its variables may be half changed.
            is_lost = isinstance(error.exception(), TimeoutError | MemoryError | RecursionError)
            problem = error.display() if hasattr(error, "display") else str(error)
            return ProgramResult(printed.output, problem=_shorten(problem), outcome="failed", is_lost=is_lost)
        return ProgramResult(printed.output, _format_value(snapshot.output))


class _Run:
    """Passes the calls of a running program on, and their answers back."""

    def __init__(self, library: Any, calls: ProgramCalls, interface: ProgramInterface, max_calls: int) -> None:
        self._library = library
        self._calls = calls
        self._interface = interface
        self._max_calls = max_calls
        self._numbers: dict[int, int] = {}
        self._count = 0

    async def continue_from(self, snapshot: Any) -> Any:
        """Answer what the program waits for.

        Return what it waits for next.
        """
        if isinstance(snapshot, self._library.AsyncNameLookupSnapshot):
            return await snapshot.resume_auto()
        if isinstance(snapshot, self._library.AsyncFunctionSnapshot):
            if snapshot.is_os_function:
                return await snapshot.resume_not_handled()
            problem = self._begin_call(snapshot)
            return await snapshot.resume({"future": ...} if problem is None else {"exception": problem})
        numbers = {self._numbers.pop(call_id): call_id for call_id in sorted(snapshot.pending_call_ids)}
        answers = await self._calls.wait_for_answers(numbers)
        return await snapshot.resume({numbers[number]: _convert(answer) for number, answer in answers.items()})

    def _begin_call(self, snapshot: Any) -> Exception | None:
        function = str(snapshot.function_name)
        if snapshot.object_id is not None or function not in self._interface.functions:
            return NameError(f"there is no function {function!r}")
        if snapshot.args:
            return TypeError(f"{function}() takes keyword arguments only")
        if self._count >= self._max_calls:
            return RuntimeError(f"a program makes at most {self._max_calls} calls")
        try:
            arguments = cast("JsonObject", msgspec.json.decode(msgspec.json.encode(snapshot.kwargs)))
        except (TypeError, ValueError, RecursionError):
            return TypeError(f"the arguments of {function}() must be JSON values")
        self._count += 1
        self._numbers[snapshot.call_id] = self._count
        self._calls.begin_call(self._count, function, arguments)
        return None


@cache
def _is_installed() -> bool:
    return importlib.util.find_spec(_LIBRARY) is not None


def _import_library() -> Any:
    import pydantic_monty

    return pydantic_monty


async def _never_called(**_arguments: object) -> None:
    """Stand-in for a function of the sandbox."""
    raise AssertionError


def _convert(answer: CallAnswer) -> dict[str, Any]:
    if answer.error is None:
        return {"return_value": answer.value}
    return {"exception": RuntimeError(answer.error)}


async def _save_variables(library: Any, session: "monty.AsyncMontySession") -> bytes | None:
    """Return the variables; None if they are too large."""
    try:
        state = await session.dump()
    except library.MontyError:  # the copy exceeds the memory limit, which ends the process
        return None
    return state if len(state) <= _MAX_SESSION_BYTES else None


def _shorten(problem: str) -> str:
    """Cut a long text in its middle.

    The place of an error is at its start, and the reason at its end.
    """
    if len(problem) <= _MAX_PROBLEM_CHARS:
        return problem
    half = _MAX_PROBLEM_CHARS // 2
    return f"{problem[:half]}…{problem[-half:]}"


def _format_value(value: object) -> str | None:
    """Write a value as text.

    Strings stay as they are; others are JSON where possible.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError):
        return repr(value)
    except RecursionError:
        return _TOO_DEEP
