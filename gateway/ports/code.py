"""Sandbox for programs that models write, and the functions that they call."""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from gateway.domain.messages import JsonObject, Principal, ToolResult, ToolSpec
from gateway.ports.tools import CallObserver


class ProgramInterface(msgspec.Struct, frozen=True):
    """The functions of programs.

    `functions` maps each function to its tool, and `stubs` each tool to its declarations in Python. Both have the order
    of the tools. `prelude` has the imports of the stubs, and `structured` the tools that promise a structured result.
    With `replaces_tools`, the model calls the tools in programs alone.
    """

    functions: dict[str, str]
    stubs: dict[str, str]
    prelude: str
    structured: frozenset[str] = frozenset()
    replaces_tools: bool = False

    def join_stubs(self, tools: Collection[str] | None = None) -> str:
        """Return the declarations of some tools; None: of all."""
        return "\n\n".join(stub for tool, stub in self.stubs.items() if tools is None or tool in tools)


class CallAnswer(msgspec.Struct, frozen=True):
    """Answer to a call in a program.

    It is a JSON value, or the text of an error that it raises there.
    """

    value: Any = None
    error: str | None = None


class ProgramResult(msgspec.Struct, frozen=True):
    """End of a program.

    `value` is that of its last expression, as text. A program with a `problem` was `rejected` before anything ran, or
    failed. After a loss, the session has no variables.
    """

    printed: str = ""
    value: str | None = None
    problem: str | None = None
    outcome: Literal["ok", "failed", "rejected"] = "ok"
    is_lost: bool = False


class ProgramSuspended(Exception):
    """A call of the program waits for a person."""


class ProgramDiverged(Exception):
    """A program that runs again makes another call than before."""


class ProgramCalls(Protocol):
    """Makes the calls of one program, which are numbered from 1."""

    @abstractmethod
    def begin_call(self, number: int, function: str, arguments: JsonObject) -> None:
        """Begin a call.

        Raises:
            ProgramDiverged: an earlier run of the program made another call here.
        """
        ...

    @abstractmethod
    async def wait_for_answers(self, numbers: Collection[int]) -> Mapping[int, CallAnswer]:
        """Wait for the answers to calls that have begun.

        Raises:
            ProgramSuspended: a call waits for a person. The others have ended.
        """
        ...


class ProgramSession(Protocol):
    """Runs programs one after another, with the variables of the earlier ones."""

    @abstractmethod
    async def run(self, code: str, calls: ProgramCalls) -> ProgramResult:
        """Check a program, and run it if it is valid.

        Calls whose answers it did not await may still run on return.

        Raises:
            ProgramSuspended, ProgramDiverged: see `ProgramCalls`.
        """
        ...


RunHostTool = Callable[[JsonObject, CallObserver], Awaitable[ToolResult]]
"""Runs a tool with its arguments. The observer asks the host's user."""


class HostTools(Protocol):
    """The tools of an MCP host that lets its model write programs."""

    @abstractmethod
    def list_specs(self, principal: Principal) -> tuple[ToolSpec, ...]:
        """List `run_python` and, for many functions, `find_tools`.

        Without a sandbox, list all tools.
        """
        ...

    @abstractmethod
    def prepare_host_tool(self, name: str, principal: Principal) -> RunHostTool | None:
        """Prepare a call of one of these tools.

        None: it is another one, or there is no sandbox.
        """
        ...


class Sandbox(Protocol):
    """Runs programs in processes of their own, without files, network and environment."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """The reason why this machine has no sandbox, if it has none."""
        ...

    @abstractmethod
    def build_interface(self, tools: tuple[ToolSpec, ...]) -> ProgramInterface:
        """Declare a function for each tool."""
        ...

    @abstractmethod
    def create_session(self, interface: ProgramInterface, *, now: datetime, seed: str) -> ProgramSession:
        """Create a session with a fixed clock and fixed random numbers.

        It holds no process while no program runs.
        """
        ...
