"""Tests of the policy wrappers over a fake toolbox."""

from collections.abc import Sequence
from typing import Any

import pytest

from gateway.domain.errors import NotFound
from gateway.domain.messages import Principal, ToolResult, ToolSpec, text_block
from gateway.mcp_client.policy.build import apply_policy
from gateway.mcp_client.policy.wrapper import ToolboxWrapper
from gateway.ports.tools import ToolCallRequest
from gateway_runtime.redaction.redactor import Redactor, load_rules

TEXT_WITH_HIDDEN_CHARACTER = "a\u200bb"
ADA = Principal("ada")


def make_spec(name: str, server: str = "s", **fields: Any) -> ToolSpec:
    return ToolSpec(name, server, name, "", {"type": "object"}, **fields)


SPECS = (make_spec("one"), make_spec("two"))


class FakeToolbox(ToolboxWrapper):
    """Records calls; resources and prompts belong to servers `s` and `t`."""

    def __init__(self) -> None:
        super().__init__(self)
        self.calls: list[Any] = []

    def list_specs(self, principal: Principal | None = None) -> tuple[ToolSpec, ...]:
        return SPECS

    def find_tool(self, name: str, principal: Principal | None = None) -> ToolSpec | None:
        return next((spec for spec in self.list_specs() if spec.name == name), None)

    async def call_tool(self, request: ToolCallRequest) -> ToolResult:
        self.calls.append(request.arguments)
        return ToolResult("ok", [text_block(TEXT_WITH_HIDDEN_CHARACTER)])

    async def list_server_items(self, kind: Any, principal: Principal) -> list[Any]:
        return [
            {"server": server, "uri": f"{server}:x", "uriTemplate": f"{server}:{{id}}", "name": f"{server}_p"}
            for server in ("s", "t")
        ]

    async def read_resource(
        self, uri: str, principal: Principal, server: str | None = None, exchange: Any = None
    ) -> Any:
        self.calls.append((uri, server))
        return {"contents": [{"text": TEXT_WITH_HIDDEN_CHARACTER}]}

    async def get_prompt(
        self,
        name: str,
        arguments: dict[str, str],
        principal: Principal,
        server: str | None = None,
        exchange: Any = None,
    ) -> Any:
        self.calls.append((name, arguments))
        return {"messages": [TEXT_WITH_HIDDEN_CHARACTER]}


def get_texts(result: Any) -> Sequence[str]:
    return [block["text"] for block in result.content]


async def test_denied_tool_is_hidden_and_never_called() -> None:
    inner = FakeToolbox()
    toolbox = apply_policy(inner, deny=("s/one",))
    assert [spec.name for spec in toolbox.list_specs()] == ["two"]
    assert toolbox.list_specs() is toolbox.list_specs()
    assert toolbox.find_tool("one") is None
    result = await toolbox.call_tool(ToolCallRequest(make_spec("one"), {}, ADA))
    assert (result.outcome, inner.calls) == ("denied", [])  # type: ignore[union-attr]


async def test_tool_outside_the_allow_list_is_never_called() -> None:
    inner = FakeToolbox()
    result = await apply_policy(inner).call_tool(
        ToolCallRequest(make_spec("one"), {}, Principal("ada", tools=("two",)))
    )
    assert (result.outcome, inner.calls) == ("denied", [])  # type: ignore[union-attr]


async def test_deep_arguments_are_refused() -> None:
    inner = FakeToolbox()
    arguments: Any = {}
    for _ in range(200):
        arguments = {"a": arguments}
    result = await apply_policy(inner).call_tool(ToolCallRequest(make_spec("one"), arguments, ADA))
    assert (result.outcome, inner.calls) == ("error", [])  # type: ignore[union-attr]


async def test_arguments_are_redacted_and_results_sanitized(redactor: Redactor) -> None:
    inner = FakeToolbox()
    result = await apply_policy(inner, redactor=redactor).call_tool(
        ToolCallRequest(make_spec("one"), {"q": "hunter2"}, ADA)
    )
    assert inner.calls == [{"q": "[gone]"}]
    assert get_texts(result) == ["ab"]


@pytest.mark.parametrize("server", [None, "t"])
async def test_resource_of_another_server_is_not_found(server: str | None) -> None:
    inner = FakeToolbox()
    with pytest.raises(NotFound):
        await apply_policy(inner).read_resource("t:x", Principal("ada", servers=("s",)), server)
    assert inner.calls == []


async def test_builtin_tool_obeys_the_policy(redactor: Redactor) -> None:
    inner = FakeToolbox()
    toolbox = apply_policy(inner, redactor=redactor)
    limited = Principal("ada", servers=("s",))
    read = make_spec("read_resource", helper=True)
    assert get_texts(await toolbox.call_tool(ToolCallRequest(read, {"uri": "s:x"}, limited))) == ["ab"]
    prompt = make_spec("get_prompt", helper=True)
    rendered = await toolbox.call_tool(ToolCallRequest(prompt, {"name": "s_p", "arguments": {"q": "hunter2"}}, ADA))
    assert '"ab"' in get_texts(rendered)[0]
    assert inner.calls == [("s:x", "s"), ("s_p", {"q": "[gone]"})]
    refused = await toolbox.call_tool(ToolCallRequest(prompt, {"name": "t_p"}, limited))
    assert (refused.outcome, len(inner.calls)) == ("error", 2)  # type: ignore[union-attr]


@pytest.fixture
def redactor(tmp_path: Any) -> Redactor:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "password"\npattern = "hunter2"\nreplacement = "[gone]"\n')
    return load_rules(rules)
