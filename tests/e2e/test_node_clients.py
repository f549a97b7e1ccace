"""The Vercel AI SDK and a browser's fetch against the gateway, in Node."""

from tests.e2e.node import needs, run
from tests.stack import Gateway


@needs("ai")
async def test_vercel_ai_sdk_needs_only_the_base_url(gateway: Gateway) -> None:
    seen = await run("chat.mjs", gateway.base_url)
    assert "437" in seen["plain"]["text"]
    assert (seen["plain"]["finish"], seen["plain"]["calls"]) == ("stop", 0)
    assert seen["plain"]["tokens"] > 0
    assert "437" in seen["streamed"]["text"]
    assert (seen["streamed"]["finish"], seen["streamed"]["tokens"] > 0) == ("stop", True)
    assert (seen["tool"]["asked"], seen["tool"]["steps"]) == (["Oslo"], 2)
    assert "It snows in Oslo." in seen["tool"]["text"]
    assert set(seen["object"]) == {"expression", "value"}
    assert seen["error"]["status"] == 404
    assert "no-such-model" in seen["error"]["message"]


@needs()
async def test_browser_resumes_the_stream_after_a_disconnect(gateway: Gateway) -> None:
    seen = await run("browser.mjs", gateway.base_url)
    assert (seen["resumed"], seen["finish"], seen["tools"]) == (True, "stop", ["calculator"])
    assert seen["text"] == seen["kept"]
    assert "437" in seen["text"]
    assert seen["refused"] == [422, "invalid_request"]
