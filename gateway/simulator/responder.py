"""Chooses the next message of the simulated model.

The choice depends on the last user message and later tool results.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import cast

import msgspec

from gateway.domain.messages import JsonObject
from gateway.simulator.generated_values import generate_arguments, generate_value, shorten_text
from gateway.simulator.programs import respond_with_several_tools
from gateway.simulator.replies import PromptContext, Reply, Responder, SimulatedCall
from gateway.simulator.request import Chat, list_images

SIMULATED_MARK = "(simulated)"


def make_reply(chat: Chat) -> Reply:
    """Make the next message of the simulated model."""
    context = PromptContext(chat)
    reply = _respond_forced(context) or _choose_responder_reply(context)
    is_plain_text = (chat.response_format or {}).get("type", "text") == "text" and not reply.text.startswith("{")
    if reply.text and is_plain_text and (images := list_images(chat)):
        kinds = ", ".join(url.partition(";")[0].removeprefix("data:")[:40] for url in images)
        reply.text = f"{reply.text} I see {len(images)} image(s): {kinds}."
    if reply.text and is_plain_text and not reply.text.endswith(SIMULATED_MARK):
        reply.text = f"{reply.text} {SIMULATED_MARK}"
    if chat.shows_reasoning:
        plan = f"I call {reply.calls[0].name}." if reply.calls else "I can answer now."
        reply.reasoning = f"The user wrote: {shorten_text(context.prompt)!r}. {plan}"
    return reply


def _choose_responder_reply(context: PromptContext) -> Reply:
    return next(filter(None, (respond(context) for respond in RESPONDERS)))


def _respond_forced(context: PromptContext) -> Reply | None:
    """Make the call that `tool_choice` requires, with generated arguments.

    If it names no tool, any tool is called.
    """
    choice = context.chat.tool_choice
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    if choice == "required" and context.chat.functions:
        reply = _choose_responder_reply(context)
        if reply.calls:
            return reply
        name = next(iter(context.chat.functions))
    if name is None or name not in context.chat.functions:
        return None
    return Reply(calls=[SimulatedCall(name, generate_arguments(_get_schema(context, name), context.prompt))])


def _get_schema(context: PromptContext, tool: str) -> JsonObject:
    return context.chat.functions[tool].get("parameters") or {}


# Responders: the first that returns a reply is used.


_SUMMARY_REQUEST = "<conversation>"
_EARLIER_SUMMARY = re.compile(r"Summary of what was before:\n(.+)")
_USER_TEXT = re.compile(r"^User: (.+)", re.MULTILINE)


def _respond_summary(context: PromptContext) -> Reply | None:
    """Summarize a conversation: list what its user wrote, shortened."""
    if not context.prompt.startswith(_SUMMARY_REQUEST):
        return None
    earlier = _EARLIER_SUMMARY.search(context.prompt)
    texts = [shorten_text(earlier[1], 400)] if earlier else []
    texts += [f"the user wrote: {shorten_text(text)}" for text in _USER_TEXT.findall(context.prompt)]
    return Reply("; ".join(texts))


_EXPLICIT = re.compile(r"\b(?:call|use|and|then)\s+([A-Za-z0-9_-]+)\s*(?:with\s*)?(?=\{)", re.IGNORECASE)


_MAX_EXPLICIT_CALLS = 50


def _respond_explicit(context: PromptContext) -> Reply | None:
    """Make the calls in `call TOOL with {json}`.

    They are made in order, or at once with `in parallel`.
    """
    calls: list[SimulatedCall] = []
    for match in islice(_EXPLICIT.finditer(context.prompt), _MAX_EXPLICIT_CALLS):
        arguments, _ = _read_object(context.prompt, match.end()) if match[1] in context.chat.functions else (None, 0)
        if arguments is not None:
            calls.append(SimulatedCall(match[1], arguments))
    if not calls:
        return None
    if "in parallel" in context.prompt.lower() and not context.results:
        return Reply(calls=calls)
    return context.run_calls(
        calls, lambda results: f"The tool said: {'; '.join(shorten_text(r, 400) for r in results)}"
    )


_URL = re.compile(r"https?://[^\s\"'<>]+")


def _respond_fetch(context: PromptContext) -> Reply | None:
    tool, url = context.find_tool("fetch_page"), _URL.search(context.prompt)
    if tool is None or url is None:
        return None
    return context.run_calls(
        [SimulatedCall(tool, {"url": url[0].rstrip(".,)")})],
        lambda results: f"The page says: {shorten_text(results[0], 300)}",
    )


_SEARCH = re.compile(r"\b(?:search(?: the web)?(?: for)?|look up|google)\s+(.+)", re.IGNORECASE)


def _respond_search(context: PromptContext) -> Reply | None:
    tool, match = context.find_tool("web_search"), _SEARCH.search(context.prompt)
    if tool is None or match is None:
        return None
    query = match[1].strip(" .?!\"'")
    return context.run_calls(
        [SimulatedCall(tool, {"query": query})],
        lambda results: f"I searched for {query!r}: {shorten_text(results[0], 300)}",
    )


_ADD = re.compile(
    r"\b(?:add|create|make)\s+(?:a\s+|another\s+|new\s+)*tasks?\s*(?:to|:|called|named|for)?\s*[\"']?(.+?)[\"']?[.!]?$"
    r"|\bremind me to\s+(.+?)[.!]?$",
    re.IGNORECASE | re.MULTILINE,
)
_SEVERAL_TASKS = re.compile(r"\btasks\s*:", re.IGNORECASE)


def _respond_add_task(context: PromptContext) -> Reply | None:
    tool, match = context.find_tool("add_task"), _ADD.search(context.prompt)
    if tool is None or match is None:
        return None
    text = match[1] or match[2]
    titles = [part.strip() for part in text.split(",")] if _SEVERAL_TASKS.search(context.prompt) else [text.strip()]
    return context.run_calls(
        [SimulatedCall(tool, {"title": title}) for title in titles],
        lambda results: " ".join(map(_to_sentence, results)),
    )


_LIST = re.compile(r"\b(?:show|list|see|what are|which)\b[^.?!]*?\btasks\b", re.IGNORECASE)
_STATUS = {"pending": "pending", "open": "pending", "completed": "completed", "done tasks": "completed"}
_ACTION = re.compile(
    r"\b(?:and|then)\b.*?\b(mark|complete|finish|delete|remove)\s+(?:the\s+)?(first|second|third|last)\b", re.IGNORECASE
)
_POSITIONS = {"first": 0, "second": 1, "third": 2, "last": -1}
_BY_ID = re.compile(
    r"\b(complete|finish|mark|check off|delete|remove|rename|update)\s+task\s+#?(\d+)(?:\s+to\s+(.+))?", re.I
)
_BY_TITLE = re.compile(
    r"\b(complete|finish|delete|remove)\s+(?:the\s+|my\s+)?task\s+[\"']?([^\"'.]+?)[\"']?[.!]?$", re.I
)
_VERBS = {"delete": "delete_task", "remove": "delete_task", "rename": "update_task", "update": "update_task"}


def _respond_list_tasks(context: PromptContext) -> Reply | None:
    tool = context.find_tool("list_tasks")
    if tool is None or not _LIST.search(context.prompt):
        return None
    head = context.prompt.lower().split(" and ")[0]
    status = next((value for word, value in _STATUS.items() if word in head), "all")
    if not context.results:
        return Reply(calls=[SimulatedCall(tool, {"status": status})])
    tasks = list(_parse_tasks(context.results[0]))
    lines = "\n".join(f"- {title} (task {task_id})" for task_id, title in tasks) or "There are none."
    action = _ACTION.search(context.prompt)
    if action is None or not tasks:
        return Reply(f"Your {status} tasks:\n{lines}\n")
    action_tool = context.find_tool(_VERBS.get(action[1].lower(), "complete_task"))
    position = _POSITIONS[action[2].lower()]
    if action_tool is None or position >= len(tasks):
        return Reply(f"Your {status} tasks:\n{lines}\nThere is no {action[2]} one that I could change.")
    if len(context.results) == 1:
        return Reply(calls=[SimulatedCall(action_tool, {"task_id": tasks[position][0]})])
    return Reply(f"Your {status} tasks were:\n{lines}\n{_to_sentence(context.results[1])}")


def _respond_single_task(context: PromptContext) -> Reply | None:
    if (by_id := _BY_ID.search(context.prompt)) is not None:
        tool = context.find_tool(_VERBS.get(by_id[1].lower(), "complete_task"))
        title = {"title": by_id[3].strip(" .")} if by_id[3] and tool and tool.endswith("update_task") else {}
        arguments = {"task_id": int(by_id[2])} | title
        if tool is None:
            return None
        return context.run_calls([SimulatedCall(tool, arguments)], lambda results: _to_sentence(results[0]))
    by_title, listing = _BY_TITLE.search(context.prompt), context.find_tool("list_tasks")
    tool = context.find_tool(_VERBS.get(by_title[1].lower(), "complete_task")) if by_title else None
    if by_title is None or tool is None or listing is None:
        return None
    wanted_title = by_title[2].strip()
    if "title" in _get_schema(context, tool).get("properties", {}):
        return context.run_calls(
            [SimulatedCall(tool, {"title": wanted_title})], lambda results: _to_sentence(results[0])
        )
    if not context.results:
        return Reply(calls=[SimulatedCall(listing, {"status": "all"})])
    tasks = _parse_tasks(context.results[0])
    task_id = next((task_id for task_id, title in tasks if title.lower() == wanted_title.lower()), None)
    if task_id is None:
        return Reply(f"You have no task called {wanted_title!r}.")
    return context.run_calls(
        [SimulatedCall(listing, {}), SimulatedCall(tool, {"task_id": task_id})],
        lambda results: _to_sentence(results[1]),
    )


_OPERATOR_WORDS = {
    "to the power of": "**",
    "squared": "**2",
    "cubed": "**3",
    "x": "*",
    "\u00d7": "*",
    "\u00f7": "/",
    "^": "**",
    "plus": "+",
    "minus": "-",
    "times": "*",
    "multiplied by": "*",
    "divided by": "/",
    "over": "/",
}
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)\s+of\s+(\d+(?:\.\d+)?)", re.IGNORECASE)
_FUNCTIONS = r"(?:sqrt|sin|cos|tan|log|ln|exp|abs|factorial|round|floor|ceil|min|max|gcd)"
_TERM = rf"(?:{_FUNCTIONS}\s*\([^()]*(?:\([^()]*\)[^()]*)*\)|\((?:[^()]|\([^()]*\))+\)|-?\d+(?:\.\d+)?)"
_EXPRESSION = re.compile(rf"{_TERM}(?:\s*(?:\*\*|//|[-+*/%])\s*{_TERM})+|{_FUNCTIONS}\s*\([^()]+\)")


def _respond_arithmetic(context: PromptContext) -> Reply | None:
    tool = context.find_tool("calculator")
    expressions = find_expressions(context.prompt)
    if tool is None or not expressions:
        return None
    return context.run_calls(
        [SimulatedCall(tool, {"expression": e}) for e in expressions],
        lambda results: " ".join(map(_to_sentence, results)),
    )


def find_expressions(text: str) -> list[str]:
    """Return the arithmetic expressions in a sentence, in order.

    They have the calculator's notation.
    """
    text = _PERCENT.sub(r"\1 / 100 * \2", text)
    for word, operator in _OPERATOR_WORDS.items():
        pattern = rf"(?<=[\d)\s]){re.escape(word)}(?=[\s\d(.?!,]|$)"
        text = re.sub(pattern, operator, text, flags=re.IGNORECASE)
    return [match[0].strip() for match in _EXPRESSION.finditer(text)]


def _respond_memory(context: PromptContext) -> Reply | None:
    lowered = context.prompt.lower()
    if "my name" in lowered and "what" in lowered:
        for text in reversed(context.earlier):
            if (match := re.search(r"\bmy name is (\w+)", text, re.IGNORECASE)) is not None:
                return Reply(f"Your name is {match[1]}.")
        return Reply("You have not told me your name.")
    if re.search(r"\bwhat did i (?:ask|say|write)", lowered):
        earlier = "; ".join(shorten_text(text) for text in context.earlier) or "nothing"
        return Reply(f"Before this you wrote: {earlier}.")
    return None


def _respond_long(context: PromptContext) -> Reply | None:
    if (count := re.search(r"\bcount (?:up )?to (\d{1,6})", context.prompt, re.IGNORECASE)) is not None:
        return Reply(" ".join(map(str, range(1, min(int(count[1]), 50_000) + 1))))
    if re.search(r"\b(?:long story|long essay|novel)\b", context.prompt, re.IGNORECASE):
        return Reply(" ".join(f"Sentence {n} of a story that nobody wrote." for n in range(1, 151)))
    return None


_NAME_PARTS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_COMMON_VERBS = {"get", "set", "do", "run", "call", "use", "find", "fetch", "list", "read", "show", "make", "mcp"}
_SCHEMA_WORD = re.compile(r"\bschema\b", re.IGNORECASE)


def _respond_structured(context: PromptContext) -> Reply | None:
    response_format = context.chat.response_format or {}
    if response_format.get("type") == "json_schema":
        return Reply(json.dumps(generate_value(response_format["json_schema"].get("schema", {}), context.prompt)))
    if response_format.get("type") == "json_object":
        return Reply(json.dumps({"answer": shorten_text(context.prompt), "simulated": True}))
    if _SCHEMA_WORD.search(context.prompt) and (schema := _find_schema(context.prompt)) is not None:
        return Reply(json.dumps(generate_value(schema, context.prompt)))
    return None


def _respond_client_tool(context: PromptContext) -> Reply | None:
    """Call a tool whose name the prompt has, word by word.

    Tools with a responder of their own are chosen before.
    """
    if context.chat.tool_choice == "none" or context.results:
        return None
    words = set(re.findall(r"[a-z0-9]+", context.prompt.lower()))
    for name in context.chat.functions:
        parts = {part.lower() for part in _NAME_PARTS.findall(name)} - _COMMON_VERBS
        if parts and parts <= words:
            return Reply(calls=[SimulatedCall(name, generate_arguments(_get_schema(context, name), context.prompt))])
    return None


def _respond_small_talk(context: PromptContext) -> Reply:
    if context.results:
        return Reply(f"The tool said: {shorten_text(context.results[-1], 300)}")
    return Reply(
        f"You wrote: {shorten_text(context.prompt)!r}. This is a simulated model: it can do arithmetic, search the "
        "web and keep tasks with the available tools, and answers like this to everything else. "
        "Set GROQ_API_KEY to use a real model."
    )


RESPONDERS: tuple[Responder, ...] = (
    _respond_summary,
    _respond_explicit,
    respond_with_several_tools,
    _respond_fetch,
    _respond_search,
    _respond_add_task,
    _respond_list_tasks,
    _respond_single_task,
    _respond_arithmetic,
    _respond_structured,
    _respond_memory,
    _respond_long,
    _respond_client_tool,
    _respond_small_talk,
)


# Parsing and formatting.

_MAX_SCHEMA_ATTEMPTS = 20
_TASK_LINE = re.compile(r"^\W*#(\d+)\W+(?:\[?(?:pending|completed)\]?\W+)?(.+?)\s*$", re.MULTILINE)


class _Task(msgspec.Struct):
    id: int
    title: str


class _Tasks(msgspec.Struct):
    tasks: list[_Task]


def _parse_tasks(result: str) -> Iterator[tuple[int, str]]:
    """Yield the id and title of each task in a result.

    A result is JSON, or lines such as `#1 [pending] buy milk`.
    """
    try:
        tasks = msgspec.json.decode(result, type=_Tasks).tasks
    except msgspec.DecodeError:
        yield from ((int(task_id), title) for task_id, title in _TASK_LINE.findall(result))
    else:
        yield from ((task.id, task.title) for task in tasks)


def _read_object(text: str, start: int) -> tuple[JsonObject | None, int]:
    """Return the JSON object that begins at a position, and its end.

    Without one, the end is behind the bracket.
    """
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start + 1
    return (cast(JsonObject, value), end) if isinstance(value, dict) else (None, start + 1)


def _find_schema(text: str) -> JsonObject | None:
    """Return the last JSON schema of an object in a text."""
    found: JsonObject | None = None
    position, attempts = text.find("{"), 0
    while position >= 0 and attempts < _MAX_SCHEMA_ATTEMPTS:
        attempts += 1
        value, end = _read_object(text, position)
        if value is not None and isinstance(value.get("properties"), dict):
            found = value
        position = text.find("{", end)
    return found


def _to_sentence(result: str) -> str:
    """End the text of a result, without its structure, as a sentence."""
    text, separator, structure = result.rpartition("\n")
    text = shorten_text(text if separator and structure.startswith("{") else result, 300)
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."
