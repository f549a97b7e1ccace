"""The tool `run_python`, and when a turn has it."""

import msgspec

from gateway.agent.batch_tool import BATCH
from gateway.agent.tool_search import FIND_TOOLS, RUN_PYTHON, ToolSelection, build_search_spec
from gateway.domain.messages import CodeMode, JsonObject, RequestedCode, ToolSpec
from gateway.ports.code import ProgramInterface, Sandbox

_CODE = "code"
_SCHEMA: JsonObject = {
    "type": "object",
    "properties": {_CODE: {"type": "string", "maxLength": 100_000, "description": "The program."}},
    "required": [_CODE],
    "additionalProperties": False,
}
_INTRODUCTION = """Run a Python program that calls tools as functions, when a task takes several calls or much data.
Await each call: `result = await name(argument=value)`, with keyword arguments only. `await asyncio.gather(...)` runs
read-only calls side by side. You get what the program prints, and the value of its last expression: print only what
you need. Variables live on for the next program of this answer; use new names for values of other types. A call that
fails or is not allowed raises RuntimeError. The program is checked before it runs. It is a subset of Python 3 with
asyncio, datetime, json, math, re and random; there are no files, no network, no other modules, and no classes with
inheritance."""
_MORE = "{} more functions exist, which are not shown here: `find_tools` shows them."
_VISIBLE = "The other tools of this request are functions, too."
_FUNCTIONS = "Functions:"
_OWN = frozenset({FIND_TOOLS, BATCH})
_MAX_HELPERS = 32


class CodeOffer(msgspec.Struct, frozen=True):
    """Decides whether a turn gets `run_python`.

    `default` is the mode of requests that say nothing. At most `max_stub_chars` of declarations are in its description.
    """

    sandbox: Sandbox
    default: CodeMode = "off"
    max_stub_chars: int = 6_000

    def add_to(self, selection: ToolSelection, requested: RequestedCode) -> ToolSelection:
        """Add `run_python` to a turn's tools, as the mode says.

        auto: beside the tools that fit into the model's request, if not all do. only: in place of all tools of the
        gateway but those that sign in, or read resources and prompts. A client-side tool of this name hides
        `run_python`.
        """
        mode = "off" if requested == "key" else requested or self.default
        specs = tuple(spec for spec in (*selection.tools, *selection.hidden) if not spec.client and spec.server)
        functions = tuple(spec for spec in specs if not spec.helper)
        if mode == "off" or not functions or (mode == "auto" and not selection.hidden):
            return selection
        own = tuple(tool for tool in selection.tools if tool.client)
        if any(tool.name == RUN_PYTHON for tool in own):
            return selection
        if self.sandbox.problem is not None or selection.choice in ("none", "required"):
            return selection
        interface = msgspec.structs.replace(self.sandbox.build_interface(functions), replaces_tools=mode == "only")
        shown = functions if mode == "only" else selection.hidden
        spec, hidden_number = self._build_spec(interface, shown)
        if mode == "auto":
            tools = (*selection.tools, spec)
        else:
            search = (build_search_spec(functions),) if hidden_number else ()
            helpers = tuple(spec for spec in specs if spec.helper and spec.name not in _OWN)[:_MAX_HELPERS]
            tools = (*own, *helpers, *search, spec)
        return msgspec.structs.replace(
            selection,
            tools=tools,
            hidden=functions if mode == "only" else selection.hidden,
            functions=functions,
            interface=interface,
        )

    def _build_spec(self, interface: ProgramInterface, shown: tuple[ToolSpec, ...]) -> tuple[ToolSpec, int]:
        """Build the tool.

        Also count the functions that its description does not show.
        """
        stubs: list[str] = []
        room = self.max_stub_chars
        for spec in shown:
            room -= len(interface.stubs[spec.name])
            if room < 0:
                break
            stubs.append(interface.stubs[spec.name])
        hidden = len(shown) - len(stubs)
        visible = [] if interface.replaces_tools else [_VISIBLE]
        parts = [
            _INTRODUCTION,
            *visible,
            *([_MORE.format(hidden)] if hidden else []),
            *([_FUNCTIONS, *stubs] if stubs else []),
        ]
        spec = ToolSpec(
            RUN_PYTHON,
            "gateway",
            RUN_PYTHON,
            "\n\n".join(parts),
            _SCHEMA,
            destructive=False,
            helper=True,
            deduplicates=True,  # answered calls of a program that runs again are not made again
        )
        return spec, hidden
