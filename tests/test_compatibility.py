"""Tests of the promises in docs/compatibility.md about the last release."""

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.schema_comparison import JsonObject, compare_openapi, compare_schemas

ROOT = Path(__file__).parent.parent
RELEASES = ROOT / "docs" / "releases"
POLICY = ROOT / "docs" / "compatibility.md"


def find_last_release() -> Path:
    return max(RELEASES.iterdir(), key=lambda path: [int(part) for part in path.name.split(".")])


def load_released(name: str) -> Any:
    return json.loads((find_last_release() / name).read_text())


def read_deliberate_changes() -> set[str]:
    """Return the changes that docs/compatibility.md lists in backticks."""
    return set(re.findall(r"^- `([^`]+)`: ", POLICY.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def current() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("release_schemas", ROOT / "packaging" / "release_schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads(json.dumps(module.generate_schemas()))


def compare_api(current: dict[str, Any]) -> set[str]:
    return set(compare_openapi(load_released("openapi.json"), current["openapi.json"]))


def compare_events(current: dict[str, Any]) -> set[str]:
    return set(compare_schemas(load_released("events.json"), current["events.json"]))


def find_removed_settings(current: dict[str, Any]) -> set[str]:
    return {
        f"{reader} {name}: removed"
        for reader, names in load_released("settings.json").items()
        for name in names
        if name not in current["settings.json"][reader]
    }


def find_removed_commands(current: dict[str, Any]) -> set[str]:
    commands = current["commands.json"]
    return {
        f"{command} {option}".rstrip() + ": removed"
        for command, options in load_released("commands.json").items()
        for option in ["", *options]
        if command not in commands or option not in ["", *commands[command]]
    }


COMPARISONS = [compare_api, compare_events, find_removed_settings, find_removed_commands]


@pytest.mark.parametrize("compare", COMPARISONS)
def test_incompatible_changes_since_the_last_release_are_listed(
    current: dict[str, Any], compare: Callable[[dict[str, Any]], set[str]]
) -> None:
    assert sorted(compare(current) - read_deliberate_changes()) == []


def test_listed_incompatible_changes_exist(current: dict[str, Any]) -> None:
    assert read_deliberate_changes() <= {difference for compare in COMPARISONS for difference in compare(current)}


# --- the comparison itself

SCHEMAS: JsonObject = {
    "Body": {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "maxLength": 100},
            "mode": {"enum": ["fast", "slow"], "type": "string"},
            "limit": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
            "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
        },
    },
    "Part": {
        "type": "object",
        "properties": {
            "kind": {"const": "text"},
            "children": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
        },
    },
    "View": {
        "type": "object",
        "required": ["id", "event"],
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "status": {"enum": ["open", "closed"]},
            "count": {"type": "integer"},
            "event": {"oneOf": [{"$ref": "#/components/schemas/Started"}, {"$ref": "#/components/schemas/Ended"}]},
        },
    },
    "Started": {"type": "object", "properties": {"type": {"enum": ["started"]}, "at": {"type": "string"}}},
    "Ended": {"type": "object", "properties": {"type": {"enum": ["ended"]}, "at": {"type": "string"}}},
}
DOCUMENT: JsonObject = {
    "paths": {
        "/things/{id}": {
            "post": {
                "operationId": "post_thing",
                "parameters": [
                    {"in": "path", "name": "id", "required": True, "schema": {"type": "string"}},
                    {"in": "query", "name": "page", "required": False, "schema": {"type": "integer", "maximum": 100}},
                    {"in": "header", "name": "X-Name", "required": False, "schema": {"type": "string"}},
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}},
                },
                "responses": {
                    "200": {
                        "headers": {"X-Id": {}},
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/View"}}},
                    },
                    "409": {"content": {}},
                },
            },
            "get": {"responses": {"200": {"content": {}}}},
        }
    },
    "components": {"schemas": SCHEMAS},
}
POST = "POST /things/{id}"


class Draft:
    """A copy of the document for a change."""

    def __init__(self) -> None:
        self.document = copy.deepcopy(DOCUMENT)
        self.path = self.document["paths"]["/things/{id}"]
        self.post = self.path["post"]
        self.parameters = self.post["parameters"]
        self.schemas = self.document["components"]["schemas"]
        self.body, self.part, self.view, self.ended = (
            self.schemas[name]["properties"] for name in ("Body", "Part", "View", "Ended")
        )


Change = Callable[[Draft], Any]


def apply_change(change: Change) -> JsonObject:
    draft = Draft()
    change(draft)
    return draft.document


BREAKING: list[tuple[str, Change]] = [
    ("GET /things/{id}: removed", lambda draft: draft.path.pop("get")),
    (f"{POST} query page: removed", lambda draft: draft.parameters.pop(1)),
    (f"{POST} query page: required now", lambda draft: draft.parameters[1].update(required=True)),
    (f"{POST} query page: maximum 50 now", lambda draft: draft.parameters[1]["schema"].update(maximum=50)),
    (f"{POST} query page: integer removed", lambda draft: draft.parameters[1].update(schema={"type": "boolean"})),
    (
        f"{POST} query new: required now",
        lambda draft: draft.parameters.append({"in": "query", "name": "new", "required": True}),
    ),
    (f"{POST} request.text: removed", lambda draft: draft.body.pop("text")),
    (f"{POST} request.text: maxLength 9 now", lambda draft: draft.body["text"].update(maxLength=9)),
    (f"{POST} request.mode: required now", lambda draft: draft.schemas["Body"]["required"].append("mode")),
    (f"{POST} request.mode: value 'slow' removed", lambda draft: draft.body["mode"]["enum"].remove("slow")),
    (f"{POST} request.limit: null removed", lambda draft: draft.body["limit"]["anyOf"].pop()),
    (
        f"{POST} request: unknown properties are refused now",
        lambda draft: draft.schemas["Body"].update(additionalProperties=False),
    ),
    (f"{POST} request.parts[].children: removed", lambda draft: draft.part.pop("children")),
    (f"{POST} request application/json: removed", lambda draft: draft.post["requestBody"]["content"].clear()),
    (f"{POST} 200: removed", lambda draft: draft.post["responses"].pop("200")),
    (f"{POST} 200 header X-Id: removed", lambda draft: draft.post["responses"]["200"]["headers"].clear()),
    (f"{POST} 200.status: removed", lambda draft: draft.view.pop("status")),
    (f"{POST} 200.status: value 'open' removed", lambda draft: draft.view["status"]["enum"].remove("open")),
    (f"{POST} 200.id: not always present now", lambda draft: draft.schemas["View"]["required"].remove("id")),
    (f"{POST} 200.id: format uuid changed to none", lambda draft: draft.view["id"].pop("format")),
    (f"{POST} 200.count: may be null now", lambda draft: draft.view.update(count={"type": ["integer", "null"]})),
    (f"{POST} 200.count: integer removed", lambda draft: draft.view.update(count={"type": "string"})),
    (f"{POST} 200.event: object 'ended' removed", lambda draft: draft.view["event"]["oneOf"].pop()),
    (f"{POST} 200.event(ended).at: removed", lambda draft: draft.ended.pop("at")),
]


@pytest.mark.parametrize(("difference", "change"), BREAKING, ids=[difference for difference, _ in BREAKING])
def test_incompatible_change_is_reported(difference: str, change: Change) -> None:
    assert difference in list(compare_openapi(DOCUMENT, apply_change(change)))


def rename_component(draft: Draft) -> None:
    draft.schemas["AnswerBody"] = draft.schemas.pop("Body")
    draft.post["requestBody"]["content"]["application/json"]["schema"] = {"$ref": "#/components/schemas/AnswerBody"}


COMPATIBLE: dict[str, Change] = {
    "renamed component": rename_component,
    "renamed operation": lambda draft: draft.post.update(operationId="other", summary="Other"),
    "new operation": lambda draft: draft.path.update(put={"responses": {}}),
    "new optional parameter": lambda draft: draft.parameters.append({"in": "query", "name": "new"}),
    "header in other letters": lambda draft: draft.parameters[2].update(name="x-name"),
    "wider bound": lambda draft: draft.body["text"].update(maxLength=999),
    "new optional property": lambda draft: draft.body.update(new={"type": "string"}),
    "new value": lambda draft: draft.body["mode"]["enum"].append("medium"),
    "no longer required": lambda draft: draft.schemas["Body"]["required"].clear(),
    "wider type": lambda draft: draft.body.update(limit={}),
    "new property of a response": lambda draft: draft.view.update(new={}),
    "new value in a response": lambda draft: draft.view["status"]["enum"].append("x"),
    "new event": lambda draft: draft.view["event"]["oneOf"].append(
        {"type": "object", "properties": {"type": {"enum": ["new"]}}}
    ),
    "error that no longer happens": lambda draft: draft.post["responses"].pop("409"),
}


@pytest.mark.parametrize("change", COMPATIBLE.values(), ids=COMPATIBLE)
def test_compatible_change_is_not_reported(change: Change) -> None:
    assert list(compare_openapi(DOCUMENT, apply_change(change))) == []
