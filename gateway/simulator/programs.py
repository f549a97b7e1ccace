"""Programs of the simulated model, for prompts that need several tools."""

import re

from gateway.simulator.replies import PromptContext, Reply, SimulatedCall

_TASK = re.compile(r"\b(?:add up|sum(?: up)?|total)\b.*\bnumbers\b.*\btasks?\b", re.IGNORECASE | re.DOTALL)
_STATUSES = ("pending", "completed")
_FUNCTION = r"async def (\w*{})\("
_STUBS = "async def "
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


def respond_with_program(context: PromptContext) -> Reply | None:
    """Add up the numbers in the titles of tasks, in one program.

    Functions that the tool's description does not declare are searched first.
    """
    tool = context.find_tool("run_python")
    if tool is None or not _TASK.search(context.prompt):
        return None
    if context.results and _STUBS not in context.results[-1]:
        return Reply(f"The numbers in the titles add up to {context.results[-1].splitlines()[-1]}.")
    declared = "\n".join([str(context.chat.functions[tool].get("description")), *context.results])
    names = {name: re.search(_FUNCTION.format(name), declared) for name in ("list_tasks", "calculator")}
    search = context.find_tool("find_tools")
    for name, match in names.items():
        if match is None:
            is_known = search is None or len(context.results) >= len(names)
            return None if is_known else Reply(calls=[SimulatedCall(str(search), {"query": name.replace("_", " ")})])
    status = next((word for word in _STATUSES if word in context.prompt.lower()), "all")
    functions = {name: match[1] for name, match in names.items() if match is not None}
    return Reply(calls=[SimulatedCall(tool, {"code": _PROGRAM.format(status=status, **functions)})])
