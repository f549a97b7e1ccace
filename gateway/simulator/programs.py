"""The simulated model at a task that needs several tools.

It adds up the numbers in the titles of tasks: in one program if it may write one, else call by call.
"""

import re

from gateway.simulator.replies import PromptContext, Reply, SimulatedCall

_TASK = re.compile(r"\b(?:add up|sum(?: up)?|total)\b.*\bnumbers\b.*\btasks?\b", re.IGNORECASE | re.DOTALL)
_STATUSES = ("pending", "completed")
_NEEDED = ("list_tasks", "calculator")
_FUNCTION = r"async def (\w*{})\("
_STUBS = "async def "
_LOADED = "You can call these tools now"
_TITLE = re.compile(r"^#\d+ \[\w+\] (.+)$", re.MULTILINE)
_NUMBER = re.compile(r"-?[0-9]+")
_RESULT = re.compile(r"-?[0-9.]+$")
_PROGRAM = """\
import re

listed = await {list_tasks}(status="{status}")
numbers = [number for task in listed["tasks"] for number in re.findall(r"-?[0-9]+", task["title"])]
total = "0"
for number in numbers:
    sum_ = await {calculator}(expression=f"{{total}} + ({{number}})")
    total = str(sum_["result"])
print(f"{{len(numbers)}} numbers")
total
"""


def respond_with_several_tools(context: PromptContext) -> Reply | None:
    """Add up the numbers in the titles of tasks.

    Tools that are not in the request are searched first.
    """
    if not _TASK.search(context.prompt):
        return None
    tool = context.find_tool("run_python")
    return _respond_with_calls(context) if tool is None else _respond_with_program(context, tool)


def _respond_with_program(context: PromptContext, tool: str) -> Reply | None:
    if context.results and _STUBS not in context.results[-1]:
        return _make_answer(context.results[-1].splitlines()[-1])
    declared = "\n".join([str(context.chat.functions[tool].get("description")), *context.results])
    functions = {name: function for name in _NEEDED if (function := _find_function(context, declared, name))}
    if len(functions) < len(_NEEDED):
        return _search(context, _NEEDED[len(functions)], len(context.results))
    program = _PROGRAM.format(status=_find_status(context), **functions)
    return Reply(calls=[SimulatedCall(tool, {"code": program})])


def _find_function(context: PromptContext, declared: str, name: str) -> str | None:
    """Find a declared function, or a tool of the request.

    Such a tool is a function, too.
    """
    match = re.search(_FUNCTION.format(name), declared)
    return context.find_tool(name) if match is None else match[1]


def _respond_with_calls(context: PromptContext) -> Reply | None:
    tools = {name: tool for name in _NEEDED if (tool := context.find_tool(name)) is not None}
    results = [result for result in context.results if not result.startswith(_LOADED)]
    if missing := [name for name in _NEEDED if name not in tools]:
        return _search(context, missing[0], len(context.results))
    if not results:
        return Reply(calls=[SimulatedCall(tools["list_tasks"], {"status": _find_status(context)})])
    numbers = [number for title in _TITLE.findall(results[0]) for number in _NUMBER.findall(title)]
    match = _RESULT.search(results[-1]) if len(results) > 1 else None
    total = match[0] if match is not None else "0"
    if len(results) <= len(numbers):
        return Reply(
            calls=[SimulatedCall(tools["calculator"], {"expression": f"{total} + ({numbers[len(results) - 1]})"})]
        )
    return _make_answer(total)


def _search(context: PromptContext, name: str, searches: int) -> Reply | None:
    tool = context.find_tool("find_tools")
    if tool is None or searches >= len(_NEEDED):
        return None
    return Reply(calls=[SimulatedCall(tool, {"query": name.replace("_", " ")})])


def _find_status(context: PromptContext) -> str:
    return next((word for word in _STATUSES if word in context.prompt.lower()), "all")


def _make_answer(total: str) -> Reply:
    return Reply(f"The numbers in the titles add up to {total}.")
