"""Conversion of sampling requests, also of hostile ones."""

from typing import Any

import pytest

from gateway.agent.sampling.limits import SamplingRefused
from gateway.agent.sampling.messages import build_sampling_result, parse_sampling_request
from gateway.domain.messages import ToolCall

TEXT = {"type": "text", "text": "hello"}
IMAGE = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
TOOL = {"name": "find", "inputSchema": {"type": "object"}}
DEEP: dict[str, Any] = {}
for _ in range(2_000):
    DEEP = {"a": DEEP}


def parse(*messages: Any, **params: Any) -> Any:
    params = {"maxTokens": 10, **params, "messages": list(messages)}
    return parse_sampling_request(params, max_tokens=100, sees_images=True)


def user(*content: Any) -> Any:
    return {"role": "user", "content": list(content)}


def test_tool_history_becomes_calls_and_results() -> None:
    use = {"type": "tool_use", "id": "1", "name": "find", "input": {"a": 1}}
    result = {"type": "tool_result", "toolUseId": "1", "content": [TEXT]}
    prompt = parse(user(TEXT), {"role": "assistant", "content": [use]}, user(result), tools=[TOOL], systemPrompt="Be.")
    assert [(message.role, message.content) for message in prompt.messages] == [
        ("system", "Be."),
        ("user", "hello"),
        ("assistant", None),
        ("tool", "hello"),
    ]
    assert prompt.messages[2].tool_calls == (ToolCall("1", "find", '{"a":1}'),)
    assert prompt.messages[3].tool_call_id == "1"
    assert prompt.tool_choice == "auto"


def test_images_stay_beside_texts() -> None:
    (message,) = parse(user(TEXT, IMAGE)).messages
    assert [part["type"] for part in message.content] == ["text", "image_url"]


@pytest.mark.parametrize("requested", [-5, 0, 1, 10**12])
def test_tokens_of_an_answer_are_bounded(requested: int) -> None:
    assert 1 <= parse(user(TEXT), maxTokens=requested).parameters.max_tokens <= 100


@pytest.mark.parametrize(
    ("messages", "params"),
    [
        ([], {}),
        ([user(TEXT)] * 201, {}),
        ([user({"type": "text", "text": "x" * 1024 * 1024})], {}),
        ([user({"type": "audio", "data": "AAAA", "mimeType": "audio/wav"})], {}),
        ([user({**IMAGE, "mimeType": "image/svg+xml"})], {}),
        ([user({"type": "tool_use", "id": "1", "name": "find", "input": {}})], {}),
        ([{"role": "assistant", "content": IMAGE}], {}),
        ([user(TEXT)], {"tools": [TOOL, TOOL]}),
        ([user(TEXT)], {"tools": [{**TOOL, "name": "rm -rf"}]}),
        ([user(TEXT)], {"tools": [{**TOOL, "name": f"t{number}"} for number in range(65)]}),
        ([user(TEXT)], {"tools": [{**TOOL, "inputSchema": DEEP}]}),
    ],
)
def test_what_the_model_cannot_get_is_refused(messages: list[Any], params: Any) -> None:
    with pytest.raises(SamplingRefused):
        parse(*messages, **params)


@pytest.mark.parametrize("arguments", ["{", "[]", "7"])
def test_call_whose_arguments_cannot_be_read_is_no_answer(arguments: str) -> None:
    with pytest.raises(SamplingRefused):
        build_sampling_result("m", "", [ToolCall("1", "find", arguments)], "tool_calls", has_tools=True)
