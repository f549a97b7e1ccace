"""What the simulated model says next. It reads the last user message, and the tool results that came since."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from gateway.simulator.request import Chat, JsonObject, text_of

SIGNED = "(simulated)"


class Call(msgspec.Struct):
    """`arguments` is text only where a fault wants it broken."""

    name: str
    arguments: JsonObject | str


class Reply(msgspec.Struct):
    """Either calls or a text; `reasoning` before it."""

    text: str = ""
    calls: list[Call] = msgspec.field(default_factory=list[Call])
    reasoning: str = ""


class Situation:
    """The conversation as a skill sees it."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.prompt = chat.prompt
        last_user = max((i for i, m in enumerate(chat.messages) if m["role"] == "user"), default=-1)
        self.results = [text_of(m) for m in chat.messages[last_user + 1 :] if m["role"] == "tool"]
        self.earlier = [text_of(m) for m in chat.messages[:last_user] if m["role"] == "user"]

    def tool(self, name: str) -> str | None:
        """The offered tool of that name, under whatever prefix."""
        if self.chat.tool_choice == "none":
            return None
        return next(
            (offered for offered in self.chat.functions if offered == name or offered.endswith(f"_{name}")), None
        )

    def plan(self, calls: list[Call], finish: Callable[[list[str]], str]) -> Reply:
        """Work through the calls, one a step or all at once as the model can, then say the end."""
        done = len(self.results)
        if done < len(calls):
            return Reply(calls=calls[done:] if self.chat.many_calls else calls[done : done + 1])
        return Reply(finish(self.results))


Skill = Callable[[Situation], Reply | None]


def reply(chat: Chat) -> Reply:
    """The next message of the simulated model."""
    situation = Situation(chat)
    chosen = _forced(situation) or next(filter(None, (skill(situation) for skill in SKILLS)))
    if chosen.text and not chosen.text.endswith(SIGNED) and (chat.response_format or {}).get("type", "text") == "text":
        chosen.text = f"{chosen.text} {SIGNED}"
    if chat.reasons:
        doing = f"I call {chosen.calls[0].name}." if chosen.calls else "I can answer now."
        chosen.reasoning = f"The user wrote: {_short(situation.prompt)!r}. {doing}"
    return chosen


def _forced(now: Situation) -> Reply | None:
    """`tool_choice` names a tool or demands one: call it with what its schema asks for."""
    choice = now.chat.tool_choice
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    if choice == "required" and not now.results:
        natural = next(filter(None, (skill(now) for skill in SKILLS)))
        if natural.calls:
            return natural
        name = next(iter(now.chat.functions))
    if name is None or name not in now.chat.functions:
        return None
    return Reply(calls=[Call(name, _fit(_schema(now, name), now.prompt))])


def _schema(now: Situation, tool: str) -> JsonObject:
    return now.chat.functions[tool].get("parameters") or {}


# --- skills, first match wins


_EXPLICIT = re.compile(r"\b(?:call|use|and|then)\s+([A-Za-z0-9_-]+)\s*(?:with\s*)?(?=\{)", re.IGNORECASE)


def _explicit(now: Situation) -> Reply | None:
    """`call TOOL with {json}`, several of them in order, or `in parallel` all at once."""
    calls: list[Call] = []
    for match in _EXPLICIT.finditer(now.prompt):
        if match[1] in now.chat.functions:
            arguments, _ = json.JSONDecoder().raw_decode(now.prompt, match.end())
            calls.append(Call(match[1], arguments))
    if not calls:
        return None
    if "in parallel" in now.prompt.lower() and not now.results:
        return Reply(calls=calls)
    return now.plan(calls, lambda results: f"The tool said: {'; '.join(_short(r, 400) for r in results)}")


_URL = re.compile(r"https?://[^\s\"'<>]+")


def _fetch(now: Situation) -> Reply | None:
    tool, url = now.tool("fetch_page"), _URL.search(now.prompt)
    if tool is None or url is None:
        return None
    return now.plan(
        [Call(tool, {"url": url[0].rstrip(".,)")})], lambda results: f"The page says: {_short(results[0], 300)}"
    )


_SEARCH = re.compile(r"\b(?:search(?: the web)?(?: for)?|look up|google)\s+(.+)", re.IGNORECASE)


def _search(now: Situation) -> Reply | None:
    tool, wanted = now.tool("web_search"), _SEARCH.search(now.prompt)
    if tool is None or wanted is None:
        return None
    query = wanted[1].strip(" .?!\"'")
    return now.plan(
        [Call(tool, {"query": query})], lambda results: f"I searched for {query!r}: {_short(results[0], 300)}"
    )


_ADD = re.compile(
    r"\b(?:add|create|make)\s+(?:a\s+|another\s+|new\s+)*tasks?\s*(?:to|:|called|named|for)?\s*[\"']?(.+?)[\"']?[.!]?$"
    r"|\bremind me to\s+(.+?)[.!]?$",
    re.IGNORECASE | re.MULTILINE,
)
_MANY = re.compile(r"\btasks\s*:", re.IGNORECASE)


def _add_task(now: Situation) -> Reply | None:
    tool, wanted = now.tool("add_task"), _ADD.search(now.prompt)
    if tool is None or wanted is None:
        return None
    text = wanted[1] or wanted[2]
    titles = [part.strip() for part in text.split(",")] if _MANY.search(now.prompt) else [text.strip()]
    return now.plan(
        [Call(tool, {"title": title}) for title in titles], lambda results: " ".join(map(_sentence, results))
    )


_LIST = re.compile(r"\b(?:show|list|see|what are|which)\b[^.?!]*?\btasks\b", re.IGNORECASE)
_STATUS = {"pending": "pending", "open": "pending", "completed": "completed", "done tasks": "completed"}
_THEN = re.compile(
    r"\b(?:and|then)\b.*?\b(mark|complete|finish|delete|remove)\s+(?:the\s+)?(first|second|third|last)\b", re.IGNORECASE
)
_PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}
_BY_ID = re.compile(
    r"\b(complete|finish|mark|check off|delete|remove|rename|update)\s+task\s+#?(\d+)(?:\s+to\s+(.+))?", re.I
)
_BY_TITLE = re.compile(
    r"\b(complete|finish|delete|remove)\s+(?:the\s+|my\s+)?task\s+[\"']?([^\"'.]+?)[\"']?[.!]?$", re.I
)
_VERBS = {"delete": "delete_task", "remove": "delete_task", "rename": "update_task", "update": "update_task"}


def _list_tasks(now: Situation) -> Reply | None:
    tool = now.tool("list_tasks")
    if tool is None or not _LIST.search(now.prompt):
        return None
    head = now.prompt.lower().split(" and ")[0]
    status = next((value for word, value in _STATUS.items() if word in head), "all")
    if not now.results:
        return Reply(calls=[Call(tool, {"status": status})])
    listed = list(_tasks_in(now.results[0]))
    lines = "\n".join(f"- {title} (task {number})" for number, title in listed) or "There are none."
    after = _THEN.search(now.prompt)
    if after is None or not listed:
        return Reply(f"Your {status} tasks:\n{lines}\n")
    acting = now.tool(_VERBS.get(after[1].lower(), "complete_task"))
    place = _PLACES[after[2].lower()]
    if acting is None or place >= len(listed):
        return Reply(f"Your {status} tasks:\n{lines}\nThere is no {after[2]} one that I could change.")
    if len(now.results) == 1:
        return Reply(calls=[Call(acting, {"task_id": listed[place][0]})])
    return Reply(f"Your {status} tasks were:\n{lines}\n{_sentence(now.results[1])}")


def _one_task(now: Situation) -> Reply | None:
    if (by_id := _BY_ID.search(now.prompt)) is not None:
        tool = now.tool(_VERBS.get(by_id[1].lower(), "complete_task"))
        title = {"title": by_id[3].strip(" .")} if by_id[3] and tool and tool.endswith("update_task") else {}
        found = {"task_id": int(by_id[2])} | title
        return now.plan([Call(tool, found)], lambda results: _sentence(results[0])) if tool else None
    by_title, listing = _BY_TITLE.search(now.prompt), now.tool("list_tasks")
    tool = now.tool(_VERBS.get(by_title[1].lower(), "complete_task")) if by_title else None
    if by_title is None or tool is None or listing is None:
        return None
    wanted = by_title[2].strip()
    if "title" in _schema(now, tool).get("properties", {}):
        return now.plan([Call(tool, {"title": wanted})], lambda results: _sentence(results[0]))
    if not now.results:
        return Reply(calls=[Call(listing, {"status": "all"})])
    number = next((n for n, title in _tasks_in(now.results[0]) if title.lower() == wanted.lower()), None)
    if number is None:
        return Reply(f"You have no task called {wanted!r}.")
    return now.plan([Call(listing, {}), Call(tool, {"task_id": number})], lambda results: _sentence(results[1]))


_WORDS = {
    "to the power of": "**", "squared": "**2", "cubed": "**3", "x": "*", "\u00d7": "*", "\u00f7": "/", "^": "**",
    "plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/", "over": "/",
}  # fmt: skip
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)\s+of\s+(\d+(?:\.\d+)?)", re.IGNORECASE)
_FUNCTIONS = r"(?:sqrt|sin|cos|tan|log|ln|exp|abs|factorial|round|floor|ceil|min|max|gcd)"
_TERM = rf"(?:{_FUNCTIONS}\s*\([^()]*(?:\([^()]*\)[^()]*)*\)|\((?:[^()]|\([^()]*\))+\)|-?\d+(?:\.\d+)?)"
_EXPRESSION = re.compile(rf"{_TERM}(?:\s*(?:\*\*|//|[-+*/%])\s*{_TERM})+|{_FUNCTIONS}\s*\([^()]+\)")


def _arithmetic(now: Situation) -> Reply | None:
    tool = now.tool("calculator")
    expressions = expressions_in(now.prompt)
    if tool is None or not expressions:
        return None
    return now.plan(
        [Call(tool, {"expression": e}) for e in expressions], lambda results: " ".join(map(_sentence, results))
    )


def expressions_in(text: str) -> list[str]:
    """The arithmetic in a sentence, in order, in the notation that calculators take."""
    text = _PERCENT.sub(r"\1 / 100 * \2", text)
    for word, sign in _WORDS.items():
        bounded = rf"(?<=[\d)\s]){re.escape(word)}(?=[\s\d(.?!,]|$)"
        text = re.sub(bounded, sign, text, flags=re.IGNORECASE)
    return [match[0].strip() for match in _EXPRESSION.finditer(text)]


def _memory(now: Situation) -> Reply | None:
    lowered = now.prompt.lower()
    if "my name" in lowered and "what" in lowered:
        for text in reversed(now.earlier):
            if (named := re.search(r"\bmy name is (\w+)", text, re.IGNORECASE)) is not None:
                return Reply(f"Your name is {named[1]}.")
        return Reply("You have not told me your name.")
    if re.search(r"\bwhat did i (?:ask|say|write)", lowered):
        asked = "; ".join(_short(text) for text in now.earlier) or "nothing"
        return Reply(f"Before this you wrote: {asked}.")
    return None


def _long(now: Situation) -> Reply | None:
    if (count := re.search(r"\bcount (?:up )?to (\d{1,6})", now.prompt, re.IGNORECASE)) is not None:
        return Reply(" ".join(map(str, range(1, min(int(count[1]), 50_000) + 1))))
    if re.search(r"\b(?:long story|long essay|novel)\b", now.prompt, re.IGNORECASE):
        return Reply(" ".join(f"Sentence {n} of a story that nobody wrote." for n in range(1, 151)))
    return None


def _structured(now: Situation) -> Reply | None:
    wanted = now.chat.response_format or {}
    if wanted.get("type") == "json_schema":
        return Reply(json.dumps(_fit(wanted["json_schema"].get("schema", {}), now.prompt)))
    if wanted.get("type") == "json_object":
        return Reply(json.dumps({"answer": _short(now.prompt), "simulated": True}))
    return None


def _small_talk(now: Situation) -> Reply:
    if now.results:
        return Reply(f"The tool said: {_short(now.results[-1], 300)}")
    return Reply(
        f"You wrote: {_short(now.prompt)!r}. This is a simulated model: it can do arithmetic, search the web and keep "
        "tasks with the tools on offer, and says sentences like these to everything else. "
        "Set GROQ_API_KEY to talk to a real one."
    )


SKILLS: tuple[Skill, ...] = (
    _explicit, _fetch, _search, _add_task, _list_tasks, _one_task, _arithmetic, _structured, _memory, _long, _small_talk
)  # fmt: skip


# --- reading and writing


_TASK_LINE = re.compile(r"^\W*#(\d+)\W+(?:\[?(?:pending|completed)\]?\W+)?(.+?)\s*$", re.MULTILINE)


class _Task(msgspec.Struct):
    id: int
    title: str


class _Tasks(msgspec.Struct):
    tasks: list[_Task]


def _tasks_in(result: str) -> Iterator[tuple[int, str]]:
    """The (id, title) of each task in a tool's result, be it JSON or lines such as `#1 [pending] buy milk`."""
    try:
        found = msgspec.json.decode(result, type=_Tasks)
    except msgspec.DecodeError:
        yield from ((int(number), title) for number, title in _TASK_LINE.findall(result))
    else:
        yield from ((task.id, task.title) for task in found.tasks)


def _fit(schema: JsonObject, prompt: str) -> Any:
    """A value that fits a JSON schema: its example, default or first choice, else the plainest of its type."""
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _fit(schema[key][0], prompt)
    kind: Any = schema.get("type", "object" if "properties" in schema else "string")
    kinds: list[str] = [kind] if isinstance(kind, str) else kind
    match kinds[0]:
        case "object":
            names = schema.get("required", list(schema.get("properties", {})))
            return {name: _fit(schema.get("properties", {}).get(name, {}), prompt) for name in names}
        case "array":
            return [_fit(schema.get("items", {}), prompt) for _ in range(schema.get("minItems", 1))]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _short(prompt)[: schema.get("maxLength", 200)] or "text"


def _short(text: str, most: int = 80) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def _sentence(result: str) -> str:
    first = _short(result, 300)
    return first if first.endswith((".", "!", "?", "…")) else f"{first}."
