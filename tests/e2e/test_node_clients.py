"""Tests of the Vercel AI SDK and of fetch in Node."""

from tests.e2e.node import require_node, run_script
from tests.stack import Gateway


@require_node("ai")
async def test_vercel_ai_sdk_needs_only_the_base_url(gateway: Gateway) -> None:
    result = await run_script("chat.mjs", gateway.base_url)
    assert "437" in result["plain"]["text"]
    assert (result["plain"]["finish"], result["plain"]["calls"]) == ("stop", 0)
    assert result["plain"]["tokens"] > 0
    assert "437" in result["streamed"]["text"]
    assert (result["streamed"]["finish"], result["streamed"]["tokens"] > 0) == ("stop", True)
    assert (result["tool"]["cities"], result["tool"]["steps"]) == (["Oslo"], 2)
    assert "It snows in Oslo." in result["tool"]["text"]
    assert set(result["object"]) == {"expression", "value"}
    assert result["error"]["status"] == 404
    assert "no-such-model" in result["error"]["message"]


@require_node()
async def test_browser_resumes_the_stream_after_a_disconnect(gateway: Gateway) -> None:
    result = await run_script("browser.mjs", gateway.base_url)
    assert (result["resumed"], result["finish"], result["tools"]) == (True, "stop", ["calculator"])
    assert result["text"] == result["stored"]
    assert "437" in result["text"]
    assert result["refused"] == [422, "invalid_request"]
