"""What the simulated model says next. It reads the last user message, and the tool results that came since."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from gateway.simulator.request import Chat, JsonObject, get_text

SIMULATED_MARK = "(simulated)"


class SimulatedCall(msgspec.Struct):
    """`arguments` is text only where a fault wants it broken."""

    name: str
    arguments: JsonObject | str


class Reply(msgspec.Struct):
    """Either calls or a text; `reasoning` before it."""

    text: str = ""
    calls: list[SimulatedCall] = msgspec.field(default_factory=list[SimulatedCall])
    reasoning: str = ""


class PromptContext:
    """The conversation as a skill sees it."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.prompt = chat.last_user_text
        last_user = max((i for i, m in enumerate(chat.messages) if m["role"] == "user"), default=-1)
        self.results = [get_text(m) for m in chat.messages[last_user + 1 :] if m["role"] == "tool"]
        self.earlier = [get_text(m) for m in chat.messages[:last_user] if m["role"] == "user"]

    def find_tool(self, name: str) -> str | None:
        """The offered tool of that name, under whatever prefix."""
        if self.chat.tool_choice == "none":
            return None
        return next(
            (offered for offered in self.chat.functions if offered == name or offered.endswith(f"_{name}")), None
        )

    def run_calls(self, calls: list[SimulatedCall], finish: Callable[[list[str]], str]) -> Reply:
        """Work through the calls, one a step or all at once as the model can, then say the end."""
        done = len(self.results)
        if done < len(calls):
            return Reply(calls=calls[done:] if self.chat.allows_many_calls else calls[done : done + 1])
        return Reply(finish(self.results))


Responder = Callable[[PromptContext], Reply | None]


def make_reply(chat: Chat) -> Reply:
    """The next message of the simulated model."""
    situation = PromptContext(chat)
    chosen = _respond_forced(situation) or next(filter(None, (skill(situation) for skill in RESPONDERS)))
    if (
        chosen.text
        and not chosen.text.endswith(SIMULATED_MARK)
        and (chat.response_format or {}).get("type", "text") == "text"
    ):
        chosen.text = f"{chosen.text} {SIMULATED_MARK}"
    if chat.shows_reasoning:
        doing = f"I call {chosen.calls[0].name}." if chosen.calls else "I can answer now."
        chosen.reasoning = f"The user wrote: {_shorten_text(situation.prompt)!r}. {doing}"
    return chosen


def _respond_forced(now: PromptContext) -> Reply | None:
    """`tool_choice` names a tool or demands one: call it with what its schema asks for."""
    choice = now.chat.tool_choice
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    if choice == "required" and not now.results:
        natural = next(filter(None, (skill(now) for skill in RESPONDERS)))
        if natural.calls:
            return natural
        name = next(iter(now.chat.functions))
    if name is None or name not in now.chat.functions:
        return None
    return Reply(calls=[SimulatedCall(name, _generate_value(_get_schema(now, name), now.prompt))])


def _get_schema(now: PromptContext, tool: str) -> JsonObject:
    return now.chat.functions[tool].get("parameters") or {}


# --- skills, first match wins


_EXPLICIT = re.compile(r"\b(?:call|use|and|then)\s+([A-Za-z0-9_-]+)\s*(?:with\s*)?(?=\{)", re.IGNORECASE)


def _respond_explicit(now: PromptContext) -> Reply | None:
    """`call TOOL with {json}`, several of them in order, or `in parallel` all at once."""
    calls: list[SimulatedCall] = []
    for match in _EXPLICIT.finditer(now.prompt):
        if match[1] in now.chat.functions:
            arguments, _ = json.JSONDecoder().raw_decode(now.prompt, match.end())
            calls.append(SimulatedCall(match[1], arguments))
    if not calls:
        return None
    if "in parallel" in now.prompt.lower() and not now.results:
        return Reply(calls=calls)
    return now.run_calls(calls, lambda results: f"The tool said: {'; '.join(_shorten_text(r, 400) for r in results)}")


_URL = re.compile(r"https?://[^\s\"'<>]+")


def _respond_fetch(now: PromptContext) -> Reply | None:
    tool, url = now.find_tool("fetch_page"), _URL.search(now.prompt)
    if tool is None or url is None:
        return None
    return now.run_calls(
        [SimulatedCall(tool, {"url": url[0].rstrip(".,)")})],
        lambda results: f"The page says: {_shorten_text(results[0], 300)}",
    )


_SEARCH = re.compile(r"\b(?:search(?: the web)?(?: for)?|look up|google)\s+(.+)", re.IGNORECASE)


def _respond_search(now: PromptContext) -> Reply | None:
    tool, wanted = now.find_tool("web_search"), _SEARCH.search(now.prompt)
    if tool is None or wanted is None:
        return None
    query = wanted[1].strip(" .?!\"'")
    return now.run_calls(
        [SimulatedCall(tool, {"query": query})],
        lambda results: f"I searched for {query!r}: {_shorten_text(results[0], 300)}",
    )


_ADD = re.compile(
    r"\b(?:add|create|make)\s+(?:a\s+|another\s+|new\s+)*tasks?\s*(?:to|:|called|named|for)?\s*[\"']?(.+?)[\"']?[.!]?$"
    r"|\bremind me to\s+(.+?)[.!]?$",
    re.IGNORECASE | re.MULTILINE,
)
_MANY = re.compile(r"\btasks\s*:", re.IGNORECASE)


def _respond_add_task(now: PromptContext) -> Reply | None:
    tool, wanted = now.find_tool("add_task"), _ADD.search(now.prompt)
    if tool is None or wanted is None:
        return None
    text = wanted[1] or wanted[2]
    titles = [part.strip() for part in text.split(",")] if _MANY.search(now.prompt) else [text.strip()]
    return now.run_calls(
        [SimulatedCall(tool, {"title": title}) for title in titles],
        lambda results: " ".join(map(_to_sentence, results)),
    )


_LIST = re.compile(r"\b(?:show|list|see|what are|which)\b[^.?!]*?\btasks\b", re.IGNORECASE)
_STATUS = {"pending": "pending", "open": "pending", "completed": "completed", "done tasks": "completed"}
_THEN = re.compile(
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


def _respond_list_tasks(now: PromptContext) -> Reply | None:
    tool = now.find_tool("list_tasks")
    if tool is None or not _LIST.search(now.prompt):
        return None
    head = now.prompt.lower().split(" and ")[0]
    status = next((value for word, value in _STATUS.items() if word in head), "all")
    if not now.results:
        return Reply(calls=[SimulatedCall(tool, {"status": status})])
    listed = list(_parse_tasks(now.results[0]))
    lines = "\n".join(f"- {title} (task {number})" for number, title in listed) or "There are none."
    after = _THEN.search(now.prompt)
    if after is None or not listed:
        return Reply(f"Your {status} tasks:\n{lines}\n")
    acting = now.find_tool(_VERBS.get(after[1].lower(), "complete_task"))
    place = _POSITIONS[after[2].lower()]
    if acting is None or place >= len(listed):
        return Reply(f"Your {status} tasks:\n{lines}\nThere is no {after[2]} one that I could change.")
    if len(now.results) == 1:
        return Reply(calls=[SimulatedCall(acting, {"task_id": listed[place][0]})])
    return Reply(f"Your {status} tasks were:\n{lines}\n{_to_sentence(now.results[1])}")


def _respond_one_task(now: PromptContext) -> Reply | None:
    if (by_id := _BY_ID.search(now.prompt)) is not None:
        tool = now.find_tool(_VERBS.get(by_id[1].lower(), "complete_task"))
        title = {"title": by_id[3].strip(" .")} if by_id[3] and tool and tool.endswith("update_task") else {}
        found = {"task_id": int(by_id[2])} | title
        return now.run_calls([SimulatedCall(tool, found)], lambda results: _to_sentence(results[0])) if tool else None
    by_title, listing = _BY_TITLE.search(now.prompt), now.find_tool("list_tasks")
    tool = now.find_tool(_VERBS.get(by_title[1].lower(), "complete_task")) if by_title else None
    if by_title is None or tool is None or listing is None:
        return None
    wanted = by_title[2].strip()
    if "title" in _get_schema(now, tool).get("properties", {}):
        return now.run_calls([SimulatedCall(tool, {"title": wanted})], lambda results: _to_sentence(results[0]))
    if not now.results:
        return Reply(calls=[SimulatedCall(listing, {"status": "all"})])
    number = next((n for n, title in _parse_tasks(now.results[0]) if title.lower() == wanted.lower()), None)
    if number is None:
        return Reply(f"You have no task called {wanted!r}.")
    return now.run_calls(
        [SimulatedCall(listing, {}), SimulatedCall(tool, {"task_id": number})], lambda results: _to_sentence(results[1])
    )


_WORDS = {
    "to the power of": "**", "squared": "**2", "cubed": "**3", "x": "*", "\u00d7": "*", "\u00f7": "/", "^": "**",
    "plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/", "over": "/",
}  # fmt: skip
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)\s+of\s+(\d+(?:\.\d+)?)", re.IGNORECASE)
_FUNCTIONS = r"(?:sqrt|sin|cos|tan|log|ln|exp|abs|factorial|round|floor|ceil|min|max|gcd)"
_TERM = rf"(?:{_FUNCTIONS}\s*\([^()]*(?:\([^()]*\)[^()]*)*\)|\((?:[^()]|\([^()]*\))+\)|-?\d+(?:\.\d+)?)"
_EXPRESSION = re.compile(rf"{_TERM}(?:\s*(?:\*\*|//|[-+*/%])\s*{_TERM})+|{_FUNCTIONS}\s*\([^()]+\)")


def _respond_arithmetic(now: PromptContext) -> Reply | None:
    tool = now.find_tool("calculator")
    expressions = find_expressions(now.prompt)
    if tool is None or not expressions:
        return None
    return now.run_calls(
        [SimulatedCall(tool, {"expression": e}) for e in expressions],
        lambda results: " ".join(map(_to_sentence, results)),
    )


def find_expressions(text: str) -> list[str]:
    """The arithmetic in a sentence, in order, in the notation that calculators take."""
    text = _PERCENT.sub(r"\1 / 100 * \2", text)
    for word, sign in _WORDS.items():
        bounded = rf"(?<=[\d)\s]){re.escape(word)}(?=[\s\d(.?!,]|$)"
        text = re.sub(bounded, sign, text, flags=re.IGNORECASE)
    return [match[0].strip() for match in _EXPRESSION.finditer(text)]


def _respond_memory(now: PromptContext) -> Reply | None:
    lowered = now.prompt.lower()
    if "my name" in lowered and "what" in lowered:
        for text in reversed(now.earlier):
            if (named := re.search(r"\bmy name is (\w+)", text, re.IGNORECASE)) is not None:
                return Reply(f"Your name is {named[1]}.")
        return Reply("You have not told me your name.")
    if re.search(r"\bwhat did i (?:ask|say|write)", lowered):
        asked = "; ".join(_shorten_text(text) for text in now.earlier) or "nothing"
        return Reply(f"Before this you wrote: {asked}.")
    return None


def _respond_long(now: PromptContext) -> Reply | None:
    if (count := re.search(r"\bcount (?:up )?to (\d{1,6})", now.prompt, re.IGNORECASE)) is not None:
        return Reply(" ".join(map(str, range(1, min(int(count[1]), 50_000) + 1))))
    if re.search(r"\b(?:long story|long essay|novel)\b", now.prompt, re.IGNORECASE):
        return Reply(" ".join(f"Sentence {n} of a story that nobody wrote." for n in range(1, 151)))
    return None


def _respond_structured(now: PromptContext) -> Reply | None:
    wanted = now.chat.response_format or {}
    if wanted.get("type") == "json_schema":
        return Reply(json.dumps(_generate_value(wanted["json_schema"].get("schema", {}), now.prompt)))
    if wanted.get("type") == "json_object":
        return Reply(json.dumps({"answer": _shorten_text(now.prompt), "simulated": True}))
    return None


def _respond_small_talk(now: PromptContext) -> Reply:
    if now.results:
        return Reply(f"The tool said: {_shorten_text(now.results[-1], 300)}")
    return Reply(
        f"You wrote: {_shorten_text(now.prompt)!r}. This is a simulated model: it can do arithmetic, search the web "
        "and keep tasks with the tools on offer, and says sentences like these to everything else. "
        "Set GROQ_API_KEY to talk to a real one."
    )


RESPONDERS: tuple[Responder, ...] = (
    _respond_explicit,
    _respond_fetch,
    _respond_search,
    _respond_add_task,
    _respond_list_tasks,
    _respond_one_task,
    _respond_arithmetic,
    _respond_structured,
    _respond_memory,
    _respond_long,
    _respond_small_talk,
)


# --- reading and writing


_TASK_LINE = re.compile(r"^\W*#(\d+)\W+(?:\[?(?:pending|completed)\]?\W+)?(.+?)\s*$", re.MULTILINE)


class _Task(msgspec.Struct):
    id: int
    title: str


class _Tasks(msgspec.Struct):
    tasks: list[_Task]


def _parse_tasks(result: str) -> Iterator[tuple[int, str]]:
    """The (id, title) of each task in a tool's result, be it JSON or lines such as `#1 [pending] buy milk`."""
    try:
        found = msgspec.json.decode(result, type=_Tasks)
    except msgspec.DecodeError:
        yield from ((int(number), title) for number, title in _TASK_LINE.findall(result))
    else:
        yield from ((task.id, task.title) for task in found.tasks)


def _generate_value(schema: JsonObject, prompt: str) -> Any:
    """A value that fits a JSON schema: its example, default or first choice, else the plainest of its type."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _generate_value(schema[key][0], prompt)
    kind: Any = schema.get("type", "object" if "properties" in schema else "string")
    kinds: list[str] = [kind] if isinstance(kind, str) else kind
    match kinds[0]:
        case "object":
            names = schema.get("required", list(schema.get("properties", {})))
            return {name: _generate_value(schema.get("properties", {}).get(name, {}), prompt) for name in names}
        case "array":
            return [_generate_value(schema.get("items", {}), prompt) for _ in range(schema.get("minItems", 1))]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _shorten_text(prompt)[: schema.get("maxLength", 200)] or "text"


def _shorten_text(text: str, max_length: int = 80) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= max_length else f"{flat[: max_length - 1]}…"


def _to_sentence(result: str) -> str:
    first = _shorten_text(result, 300)
    return first if first.endswith((".", "!", "?", "…")) else f"{first}."
