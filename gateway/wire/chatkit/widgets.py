"""Widgets of ChatKit by which people answer questions."""

from typing import Any, cast

import msgspec

from gateway.domain.errors import InvalidRequest
from gateway.domain.events import InputRequired
from gateway.domain.messages import JSON_DECODE_ERRORS, Action, Answer, JsonObject

ANSWER_ACTION = "gateway.answer"
"""Type of the actions of the widgets' buttons."""
_FIELD_PREFIX = "content."
_MAX_FIELDS = 50
_RESULTS: dict[Action, str] = {
    "accept": "Accepted",
    "decline": "Declined",
    "cancel": "Cancelled",
    "expire": "Expired",
}


def build_question_widget(question: InputRequired) -> JsonObject:
    """Build a card with the question and its buttons."""
    children = [_build_text(question.message)]
    if question.url is not None:
        children.append({"type": "Markdown", "value": f"[Open the page]({question.url})"})
    accept, decline = ("Approve", "Decline") if question.kind == "approval" else ("Done", "Decline")
    card: JsonObject = {
        "type": "Card",
        "children": children,
        "confirm": {"label": accept, "action": _build_action(question, "accept")},
        "cancel": {"label": decline, "action": _build_action(question, "decline")},
    }
    if question.kind == "question":
        fields: JsonObject = (question.schema or {}).get("properties") or {}
        children += [part for name, field in list(fields.items())[:_MAX_FIELDS] for part in _build_field(name, field)]
        card |= {"asForm": True, "confirm": {"label": "Send", "action": _build_action(question, "accept")}}
    return card


def build_answered_widget(question: InputRequired, action: Action) -> JsonObject:
    """Build the card of a question that is closed, without buttons."""
    return {"type": "Card", "children": [_build_text(question.message), _build_text(f"{_RESULTS[action]}.")]}


def parse_answer_payload(payload: object, *, by: str) -> tuple[str, Answer]:
    """Read the payload of a button, with the form's fields.

    Returns the id of the question, and the answer.

    Raises:
        InvalidRequest: the payload is not one of a widget's.
    """
    fields: JsonObject = cast(JsonObject, payload) if isinstance(payload, dict) else {}
    input_id, action = fields.get("input_id"), fields.get("action")
    if not isinstance(input_id, str) or action not in ("accept", "decline", "cancel"):
        message = "action.payload: must have input_id, and the action accept, decline or cancel."
        raise InvalidRequest(message, param="action.payload")
    nested: Any = fields.get("content")
    content: JsonObject = dict(cast(JsonObject, nested)) if isinstance(nested, dict) else {}
    content |= {
        name.removeprefix(_FIELD_PREFIX): value for name, value in fields.items() if name.startswith(_FIELD_PREFIX)
    }
    return input_id, Answer(action, content if action == "accept" else None, by=by)


def convert_form_values(content: JsonObject, schema: JsonObject | None) -> JsonObject:
    """Return the texts of a form as values of the schema."""
    fields: JsonObject = (schema or {}).get("properties") or {}
    return {name: _convert_value(value, fields.get(name)) for name, value in content.items()}


def _convert_value(value: object, field: object) -> object:
    kind: object = cast(JsonObject, field).get("type") if isinstance(field, dict) else None
    if not isinstance(value, str) or kind not in ("integer", "number", "boolean", "array"):
        return value
    try:
        return msgspec.json.decode(value)
    except JSON_DECODE_ERRORS:
        return value


def _build_action(question: InputRequired, action: Action) -> JsonObject:
    return {"type": ANSWER_ACTION, "payload": {"input_id": question.input_id, "action": action}}


def _build_text(value: str) -> JsonObject:
    return {"type": "Text", "value": value}


def _build_field(name: str, field: object) -> list[JsonObject]:
    """Build label and control of a field."""
    schema = cast(JsonObject, field) if isinstance(field, dict) else {}
    label = str(schema.get("title") or schema.get("description") or name)
    control: JsonObject = {"name": f"{_FIELD_PREFIX}{name}"}
    options: object = schema.get("enum")
    if schema.get("type") == "boolean":
        return [control | {"type": "Checkbox", "label": label, "defaultChecked": schema.get("default") is True}]
    if isinstance(options, list):
        values = [str(option) for option in cast(list[object], options)]
        control |= {"type": "Select", "options": [{"value": value, "label": value} for value in values]}
    else:
        is_number = schema.get("type") in ("integer", "number")
        control |= {"type": "Input", "inputType": "number" if is_number else "text"}
    return [{"type": "Label", "value": label, "fieldName": control["name"]}, control]
