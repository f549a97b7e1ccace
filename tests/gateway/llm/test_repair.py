"""Repair of invalid tool calls, with the cases of `malformed_calls.json`."""

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway.domain.messages import ToolCall, ToolSpec
from gateway.llm.tool_repair import extraction
from gateway.llm.tool_repair.json_repair import LenientJsonParser
from gateway.llm.tool_repair.repair import (
    RepairedCall,
    UnrepairableCall,
    extract_calls,
    repair_call,
    repair_calls,
    write_tools_prompt,
)

CORPUS: dict[str, Any] = json.loads(Path(__file__).with_name("malformed_calls.json").read_text("utf-8"))
SCHEMAS: dict[str, Any] = CORPUS["schemas"]
ENTRIES: list[dict[str, Any]] = CORPUS["entries"]
VALID = [
    ("calculator", {"expression": "2 * (3 + 4)", "precision": 2}),
    ("web_search", {"query": 'say "hi"\n{now}', "max_results": 3}),
    ("add_task", {"title": "Ünïcode 🎉", "priority": "high", "tags": ["a", "b"], "done": True, "due": None}),
    ("list_tasks", {}),
    ("create_event", {"title": "x", "starts_at": "2026-01-01", "attendees": [{"name": "Ann"}], "place": {"room": "1"}}),
]
DEEP = ["[" * 100_000, '{"a":' * 30_000, '{"name": "list_tasks", "arguments": ' * 5_000, "[" * 50_000 + "]" * 50_000]


def repair_case(entry: dict[str, Any]) -> list[RepairedCall | UnrepairableCall]:
    if entry["form"] == "generation":
        calls = extract_calls(entry["text"], SCHEMAS)
    else:
        calls = [ToolCall("call_1", entry["name"], entry["arguments"])]
    return [repaired for call in calls for _, repaired in repair_calls(call, SCHEMAS)]


def is_repaired(entry: dict[str, Any]) -> bool:
    expected = entry["expect"].get("calls")
    return expected == [
        {"name": result.name, "arguments": result.arguments}
        for result in repair_case(entry)
        if isinstance(result, RepairedCall)
    ]


def is_requested_again(entry: dict[str, Any]) -> bool:
    return any(isinstance(result, UnrepairableCall) for result in repair_case(entry))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["id"] for entry in ENTRIES])
def test_malformed_call_is_repaired_or_requested_again(entry: dict[str, Any]) -> None:
    results, expect = repair_case(entry), entry["expect"]
    if "ask_again" in expect:
        assert [type(result) for result in results] == [UnrepairableCall]
        assert isinstance(results[0], UnrepairableCall)
        assert expect["ask_again"] in results[0].problem
    else:
        assert [(result.name, result.arguments) for result in results if isinstance(result, RepairedCall)] == [
            (call["name"], call["arguments"]) for call in expect["calls"]
        ]
        assert all(isinstance(result, RepairedCall) for result in results), results


def test_corpus_is_repaired_or_requested_again_completely() -> None:
    repaired, requested = sum(map(is_repaired, ENTRIES)), sum(map(is_requested_again, ENTRIES))
    count = len(ENTRIES)
    print(f"{count} entries: {repaired / count:.1%} repaired, {requested / count:.1%} requested again")
    nothing = sum(not repair_case(entry) and entry["expect"] == {"calls": []} for entry in ENTRIES)
    assert count >= 370
    assert repaired + requested == count
    assert nothing <= 35
    assert len({entry["id"] for entry in ENTRIES}) == count


def mutate(text: str, chance: random.Random) -> str:
    """Apply one to three random mutations to a text."""
    for _ in range(chance.randint(1, 3)):
        at, to = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
        piece = chance.choice(
            ["{", "}", "[", "]", '"', "'", ",", ":", "\\", "\n", "//", "/*", "<|", "(", "=", "“", "0", "\ud83d"]
        )
        text = chance.choice(
            [
                text[:at],
                text[:at] + piece + text[at:],
                text[:at] + text[at + 1 :],
                text[:at] + text[to:],
                text + text[at:to],
                text.replace('"', piece),
                f"```json\n{text}\n```",
                json.dumps(text),
            ]
        )
    return text


@pytest.mark.parametrize("seed", range(4))
def test_mutated_calls_raise_nothing_and_repaired_ones_match_their_schema(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(500):
        name, arguments = chance.choice(VALID)
        text = mutate(json.dumps(arguments, ensure_ascii=chance.random() < 0.5), chance)
        written = mutate(f"<function={name}>{text}</function>", chance)
        calls = [ToolCall("call_1", mutate(name, chance) if chance.random() < 0.2 else name, text)]
        for call in calls + extract_calls(written, SCHEMAS) + extract_calls(text, SCHEMAS):
            result = repair_call(call.name, call.arguments, SCHEMAS)
            if isinstance(result, RepairedCall):
                jsonschema.validate(result.arguments, SCHEMAS[result.name], jsonschema.Draft202012Validator)
                json.dumps(result.arguments, ensure_ascii=False).encode()
            else:
                assert result.problem


@pytest.mark.parametrize(("name", "arguments"), VALID, ids=[name for name, _ in VALID])
def test_well_formed_call_is_unchanged(name: str, arguments: dict[str, Any]) -> None:
    assert repair_call(name, json.dumps(arguments), SCHEMAS) == RepairedCall(name, arguments)


@pytest.mark.parametrize(("name", "arguments"), VALID[:3], ids=[name for name, _ in VALID[:3]])
def test_truncated_call_never_runs_with_a_partial_argument(name: str, arguments: dict[str, Any]) -> None:
    text = json.dumps(arguments)
    for cut in range(1, len(text)):
        result = repair_call(name, text[:cut], SCHEMAS)
        if isinstance(result, RepairedCall):
            for key, value in result.arguments.items():
                whole = arguments[key]
                assert value == (whole[: len(value)] if isinstance(value, list) else whole)
            assert text[cut - 1] in '"]el'


@pytest.mark.parametrize("text", DEEP, ids=["lists", "objects", "calls", "closed lists"])
def test_deeply_nested_text_is_not_repaired(text: str) -> None:
    assert isinstance(repair_call("calculator", text, SCHEMAS), UnrepairableCall)
    assert isinstance(repair_call("calculator", f'{{"expression": {text}', SCHEMAS), UnrepairableCall)
    for call in extract_calls(text, SCHEMAS) + extract_calls(f"<TOOL_CALLS>{text}", SCHEMAS):
        assert isinstance(repair_call(call.name, call.arguments, SCHEMAS), UnrepairableCall)


def test_calls_in_too_long_text_are_ignored_but_long_valid_arguments_run() -> None:
    long = json.dumps({"title": "x" * 300_000})
    assert extract_calls(f"<function=add_task>{long}</function>", SCHEMAS) == []
    assert isinstance(repair_call("add_task", long, SCHEMAS), RepairedCall)
    assert isinstance(repair_call("add_task", long[:-1], SCHEMAS), UnrepairableCall)


@pytest.mark.parametrize(
    "opening",
    [
        "{'",
        "{“",
        "{/*",
        "<function=",
        "<function=a>{“</function>",
        "<function=a>(“</function>",
        "Action: x\nAction Input:",
        "```\n{",
        "[\n",
        "calculator{\n",
        '<tool_call>{"a": ',
    ],
)
def test_extraction_reads_a_hostile_text_at_most_four_times(opening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the characters that are read.

    The count does not depend on the machine.
    """
    read = 0

    def count(reader: LenientJsonParser, at: int) -> None:
        nonlocal read
        read += max(0, at - getattr(reader, "_at", at))
        reader.__dict__["_at"] = at

    monkeypatch.setattr(LenientJsonParser, "at", property(lambda reader: reader.__dict__["_at"], count), raising=False)
    text = (opening * 200_000)[:200_000]
    extract_calls(text, SCHEMAS)
    assert read <= 4 * len(text)


@pytest.mark.parametrize("end", ["", "[/TOOL_CALLS]"])
@pytest.mark.parametrize("opening", ['<tool_call>{"a": ', '[TOOL_CALLS]{"a": ', "<function=add_task>x"])
def test_end_of_a_block_is_searched_once_in_a_hostile_text(
    opening: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = 0

    class CountingPattern:
        def search(self, text: str, at: int) -> re.Match[str] | None:
            nonlocal searched
            found = pattern.search(text, at)
            searched += (found.end() if found else len(text)) - at
            return found

    pattern = extraction._BLOCK_END
    monkeypatch.setattr(extraction, "_BLOCK_END", CountingPattern())
    text = (opening * 20_000)[:20_000] + end
    extract_calls(text, SCHEMAS)
    assert searched <= 2 * len(text)


def test_call_ids_are_deterministic_and_unique() -> None:
    text = "<function=list_tasks>{}</function><function=list_tasks>{}</function>"
    first, second = extract_calls(text, SCHEMAS)
    assert first.id.startswith("call_")
    assert len(first.id) == len("call_") + 8
    assert first.id != second.id
    assert extract_calls(text, SCHEMAS) == [first, second]


def test_recursive_and_remote_schemas_are_bounded_and_not_fetched() -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "value": {"type": "integer"}}}
    loop = {"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}}
    remote = {"type": "object", "properties": {"x": {"$ref": "https://example.invalid/schema.json"}}}
    assert repair_call("t", '{"left": {"left": {"value": "1"}}}', {"t": tree}) == RepairedCall(
        "t", {"left": {"left": {"value": 1}}}, ("left.left.value: as integer",)
    )
    assert repair_call("t", '{"x": 1}', {"t": loop}) == RepairedCall("t", {"x": 1})
    assert repair_call("t", '{"x": 1}', {"t": remote}) == RepairedCall("t", {"x": 1})


def test_invalid_schema_does_not_prevent_a_call() -> None:
    assert repair_call("t", "{'x': 1}", {"t": {"type": "objekt"}}) == RepairedCall("t", {"x": 1}, ("quotes",))


def test_repaired_call_lists_its_repairs() -> None:
    result = repair_call("Calculator", '{expression: \'1+1\', "precision": "2",}', SCHEMAS)
    assert result == RepairedCall(
        "calculator",
        {"expression": "1+1", "precision": 2},
        ("the name", "a key without quotes", "quotes", "an extra comma", "precision: as integer"),
    )


def test_argument_named_like_a_wrapper_is_kept() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "input": {"type": "object"}}}
    own = {"name": "x", "input": {"a": 1}}
    assert repair_call("run", json.dumps(own), {"run": schema}) == RepairedCall("run", own)
    around = {"name": "run", "arguments": own}
    result = repair_call("run", json.dumps(around), {"run": schema})
    assert isinstance(result, RepairedCall)
    assert result.arguments == own


def test_tools_prompt_lists_the_tools_and_the_call_format() -> None:
    specs = [ToolSpec(name, "server", name, "What it does.", SCHEMAS[name]) for name in ("calculator", "list_tasks")]
    prompt = write_tools_prompt(specs)
    assert prompt == write_tools_prompt(specs)
    assert all(f'"name":"{spec.name}"' in prompt for spec in specs)
    assert '<TOOL_CALLS>[{"name": ' in prompt
    assert write_tools_prompt([]) == ""
