"""Programs in Monty, an interpreter of a subset of Python.

It runs in worker processes. The library is imported on first use.
"""

import asyncio
import importlib.util
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
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
_MAX_ARGUMENT_BYTES = 256 * 1024
_MAX_ALL_ARGUMENT_BYTES = 4 * 1024 * 1024
_MAX_LOGGED_CHARS = 200
_FILE = "program.py"
_NOT_INSTALLED = "The package pydantic-monty is not installed: it has no wheel for this platform."
_BUSY = "All sandboxes are busy. Try again, or call the tools without a program."
_LOST = "The sandbox ended. Nothing that the program called is undone, and its variables are lost."

_TOO_LARGE = "the arguments of {}() are too large: a call takes {:,} bytes, and all calls of a program {:,}"
_TOO_DEEP = "(a value that is nested too deeply to be shown)"


class SandboxLimits(msgspec.Struct, frozen=True):
    """Limits of programs.

    `seconds` is the time of a program without its waits; `processes` belong to one worker of the gateway.
    """

    seconds: float = 5.0
    memory_bytes: int = 64 * 1024 * 1024
    calls: int = 200
    processes: int = 4


class SandboxesBusy(Exception):
    """No worker process became free in time."""


class MontySandbox(Sandbox):
    """A pool of worker processes, which starts on first use.

    `is_wanted` is set while more programs need a process than there are. Programs that wait for calls then return
    theirs.
    """

    def __init__(self, limits: SandboxLimits) -> None:
        self._limits = limits
        self._stack = AsyncExitStack()
        self._pool: monty.AsyncMonty | None = None
        self._starting = asyncio.Lock()
        self.is_wanted = asyncio.Event()
        self._demand = 0
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

    @asynccontextmanager
    async def check_out(self, options: Mapping[str, Any]) -> AsyncGenerator["monty.AsyncMontySession"]:
        """Hold a worker process.

        Raises:
            SandboxesBusy: none became free in time.
        """
        pool = await self._start_pool()
        self._count_demand(1)
        try:
            session = pool.checkout(**options)
            try:
                await session.__aenter__()
            except TimeoutError:
                raise SandboxesBusy from None
            async with AsyncExitStack() as stack:
                stack.push_async_exit(session)
                yield session
        finally:
            self._count_demand(-1)

    def _count_demand(self, change: int) -> None:
        self._demand += change
        if self._demand > self._limits.processes:
            self.is_wanted.set()
        else:
            self.is_wanted.clear()

    async def _start_pool(self) -> "monty.AsyncMonty":
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
        run = _Run(library, self._sandbox, self._make_options(), calls, self._interface, self._limits.calls)
        try:
            async with run:
                result = await self._run_checked(library, run, code)
                self._state = None if result.is_lost else await _save_variables(library, run.session)
        except SandboxesBusy:
            if not run.has_begun:
                return ProgramResult(problem=_BUSY, outcome="rejected")
            self._state = None
            return ProgramResult(problem=_LOST, outcome="failed", is_lost=True)
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

    async def _run_checked(self, library: Any, run: "_Run", code: str) -> ProgramResult:
        printed = run.printed
        try:
            snapshot = await run.start(code, self._state)
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
    """Passes the calls of a running program on, and their answers back.

    It holds a worker process. While its calls run, it returns the process to other programs that need one.
    """

    def __init__(
        self,
        library: Any,
        sandbox: MontySandbox,
        options: Mapping[str, Any],
        calls: ProgramCalls,
        interface: ProgramInterface,
        max_calls: int,
    ) -> None:
        self.has_begun = False
        self.printed = library.CollectString(max_bytes=_MAX_PRINTED_BYTES)
        self._library = library
        self._sandbox = sandbox
        self._options = options
        self._calls = calls
        self._interface = interface
        self._max_calls = max_calls
        self._callbacks: dict[str, Any] = {
            "external_lookup": dict.fromkeys(interface.functions, _never_called),
            "print_callback": self.printed,
        }
        self._process = AsyncExitStack()
        self._session: monty.AsyncMontySession | None = None
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._argument_bytes = 0

    async def __aenter__(self) -> None:
        self._session = await self._process.enter_async_context(self._sandbox.check_out(self._options))

    async def __aexit__(self, *error: Any) -> None:
        await self._process.__aexit__(*error)

    @property
    def session(self) -> "monty.AsyncMontySession":
        assert self._session is not None
        return self._session

    async def start(self, code: str, state: bytes | None) -> Any:
        """Start the program with the variables of earlier ones.

        Return what it waits for.
        """
        if state is not None:
            await self.session.load_session(state)
        self.has_begun = True
        return await self.session.feed_start(code, **self._callbacks)

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
        answering = asyncio.ensure_future(self._calls.wait_for_answers(numbers))
        try:
            snapshot = await self._lend_process(snapshot, answering)
            answers = await answering
        finally:
            answering.cancel()
            await asyncio.wait((answering,))
        return await snapshot.resume({numbers[number]: _convert(answer) for number, answer in answers.items()})

    async def _lend_process(self, snapshot: Any, answering: asyncio.Future[Any]) -> Any:
        """Wait for the answers, without a process if others need it.

        Programs that are too large to be saved keep theirs.
        """
        wanted = asyncio.ensure_future(self._sandbox.is_wanted.wait())
        try:
            await asyncio.wait((answering, wanted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()
            await asyncio.wait((wanted,))
        if answering.done():
            return snapshot
        try:
            state = await asyncio.to_thread(snapshot.dump)
        except self._library.MontyError:
            await asyncio.wait((answering,))
            raise
        if len(state) > _MAX_SESSION_BYTES:
            return snapshot
        await self._process.aclose()
        await asyncio.wait((answering,))
        if answering.cancelled() or answering.exception() is not None:
            return snapshot
        self._session = await self._process.enter_async_context(self._sandbox.check_out(self._options))
        return await self.session.load_snapshot(state, **self._callbacks)

    def _begin_call(self, snapshot: Any) -> Exception | None:
        function = str(snapshot.function_name)
        if snapshot.object_id is not None or function not in self._interface.functions:
            return NameError(f"there is no function {function!r}")
        if snapshot.args:
            return TypeError(f"{function}() takes keyword arguments only")
        if self._count >= self._max_calls:
            return RuntimeError(f"a program makes at most {self._max_calls} calls")
        try:
            encoded = msgspec.json.encode(snapshot.kwargs)
            arguments = cast("JsonObject", msgspec.json.decode(encoded))
        except (TypeError, ValueError, RecursionError):
            return TypeError(f"the arguments of {function}() must be JSON values")
        if len(encoded) > min(_MAX_ARGUMENT_BYTES, _MAX_ALL_ARGUMENT_BYTES - self._argument_bytes):
            return ValueError(_TOO_LARGE.format(function, _MAX_ARGUMENT_BYTES, _MAX_ALL_ARGUMENT_BYTES))
        if not _is_finite(snapshot.kwargs):
            return ValueError(f"the arguments of {function}() must be JSON values, which NaN and infinity are not")
        self._argument_bytes += len(encoded)
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


def _is_finite(value: object) -> bool:
    """Return whether no number in a value is NaN or infinite."""
    values = [value]
    while values:
        item = values.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, dict):
            mapping = cast("dict[object, object]", item)
            values += (*mapping, *mapping.values())
        elif isinstance(item, list | tuple | set | frozenset):
            values += cast("list[object]", item)
    return True


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

    Strings stay as they are; others are JSON where possible. A long value, which is cut for the model, may have null in
    place of NaN.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        encoded = msgspec.json.encode(value)
        return encoded.decode() if len(encoded) > _MAX_ARGUMENT_BYTES or _is_finite(value) else repr(value)
    except (TypeError, ValueError):
        return repr(value)
    except RecursionError:
        return _TOO_DEEP
