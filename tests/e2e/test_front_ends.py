"""Tests of front ends' SDKs, in Node and in Chromium."""

from gateway.simulator import Fault
from tests.e2e.node import NODE_22, require_node, run_script
from tests.eventually import eventually
from tests.stack import Gateway


@require_node("@ai-sdk/react")
async def test_chats_of_the_ai_sdk_need_only_the_url(gateway: Gateway) -> None:
    gateway.simulator.faults.add_faults(Fault(kind="endless", after_chunks=2, seconds=0.2, match="Go on"))
    result = await run_script("ui_chat.mjs", gateway.base_url, node=NODE_22)
    plain = result["plain"]
    assert plain["types"] == ["step-start", "reasoning", "dynamic-tool", "step-start", "reasoning", "text"]
    assert "437" in plain["text"]
    assert plain["metadata"]["finish_reason"] == "stop"
    assert (plain["roles"], plain["status"]) == (["user", "assistant", "user", "assistant"], "ready")
    assert (result["approval"]["asked"], result["approval"]["states"]) == ("approval-requested", ["output-available"])
    assert result["approval"]["messages"] == 2
    assert "milk" in result["approval"]["text"]
    assert (result["own"]["cities"], result["own"]["messages"]) == (["Oslo"], 2)
    assert result["own"]["types"].count("tool-get_weather") == 1
    assert "It snows in Oslo." in result["own"]["text"]
    assert (result["stopped"]["status"], result["stopped"]["sameId"]) == ("ready", True)
    assert result["idle"] == "ready"
    assert result["refused"]["status"] == "error"
    assert "no-such-model" in result["refused"]["message"]
    assert result["six"]["types"] == plain["types"]
    assert "437" in result["six"]["text"]

    async def is_cancelled() -> bool:
        turn = await gateway.get(f"/api/v1/turns/{result['stopped']['turn']}")
        return turn.body["status"] == "cancelled"

    await eventually(is_cancelled)
