"""Images in requests and in results of tools."""

import base64
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.llm.catalog import Catalog
from gateway.simulator import Fault, Simulator
from tests.gateway.mcp_client.raw_server import RawServer, make_raw_tool, serve_raw
from tests.stack import Gateway, serve_gateway

SEEING, BLIND = "qwen/qwen3.8-27b", "openai/gpt-oss-120b"
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 60).decode()
URL = f"data:image/png;base64,{PIXEL}"


def make_part(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def make_body(url: Any, model: str = SEEING, **fields: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "What is this?"}, make_part(url)]
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", make_body(URL)),
    "native": ("/api/v1/chat", make_body(URL)),
    "responses": (
        "/v1/responses",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": URL},
                    ],
                }
            ]
        },
    ),
    "anthropic": (
        "/v1/messages",
        {
            "max_tokens": 100,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                        {"type": "text", "text": "What is this?"},
                    ],
                }
            ],
        },
    ),
}


@pytest.mark.parametrize("name", FORMATS)
async def test_image_reaches_a_model_that_sees_in_every_format(shared_gateway: Gateway, name: str) -> None:
    path, body = FORMATS[name]
    reply = await shared_gateway.post(path, body | {"model": SEEING})
    assert reply.status == 200, reply.body
    assert "I see 1 image(s): image/png" in str(reply.body)
    refused = await shared_gateway.post(path, body | {"model": BLIND})
    if name == "anthropic":  # its clients expect that what a model lacks is left out
        assert "cannot see" in refused.headers["X-Gateway-Warnings"]
        return
    assert refused.status in (400, 422)
    assert "cannot see images; models that can: qwen/qwen3.8-27b" in refused.body["error"]["message"]


async def test_models_tell_what_they_read(shared_gateway: Gateway) -> None:
    native = (await shared_gateway.get("/api/v1/models")).body["models"]
    told = {model["id"]: model["input_modalities"] for model in native}
    assert (told[SEEING], told[BLIND]) == (["text", "image"], ["text"])
    model = (await shared_gateway.get(f"/v1/models/{SEEING}")).body
    assert model["input_modalities"] == ["text", "image"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"input_modalities": ["text", "image"]}, ("text", "image")),
        ({"architecture": {"input_modalities": ["image", "text"]}}, ("image", "text")),
        ({"capabilities": {"vision": True}}, ("text", "image")),
        ({"capabilities": {"vision": False}}, ("text",)),
        ({"capabilities": ["vision"], "architecture": "x", "input_modalities": 5}, ()),
        ({}, ()),
    ],
)
def test_catalogue_reads_modalities_of_servers(entry: dict[str, Any], expected: tuple[str, ...]) -> None:
    catalog = Catalog((), open_ended=True)
    catalog.update_models([{"id": "m", **entry}])
    assert catalog.get_model_info("m").input_modalities == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("data:image/svg+xml;base64,PHN2Zz4=", "data URL"),
        ("data:text/html;base64,PHN2Zz4=", "data URL"),
        ("data:image/png,abc", "data URL"),
        ("data:image/png;base64,%%%%", "base64"),
        ("data:image/png;base64,é", "base64"),
        ("file:///etc/passwd", "public"),
        ("ftp://example.com/a.png", "public"),
        ("http://127.0.0.1/a.png", "public"),
        ("http://169.254.169.254/latest", "public"),
        ("http://[::1]/a.png", "public"),
        ("http://2130706433/a.png", "public"),
        ("http://0x7f.1/a.png", "public"),
        ("http://localhost:9/a.png", "public"),
        ("http://metadata.google.internal/", "public"),
        ("http://user@10.0.0.1/a.png", "public"),
        ("http://[/a.png", "public"),
        ("", "public"),
        (5, "text"),
        (None, "text"),
    ],
)
async def test_image_that_may_not_be_passed_on_is_refused(shared_gateway: Gateway, url: Any, problem: str) -> None:
    reply = await shared_gateway.post("/v1/chat/completions", make_body(url))
    assert reply.status == 400, reply.body
    assert problem in reply.body["error"]["message"]
    assert reply.body["error"]["param"] == "messages.0"


async def test_public_url_is_passed_to_the_models_server_and_not_fetched(shared_gateway: Gateway) -> None:
    url = "https://images.example.com/a.png"
    assert (await shared_gateway.post("/v1/chat/completions", make_body(url))).status == 200
    assert url in str(shared_gateway.simulator.requests[-1]["messages"])


@pytest.mark.faults
async def test_limits_of_images_name_their_settings(database_url: str, simulator: Simulator, tools_url: str) -> None:
    settings: dict[str, Any] = {"max_images": 2, "max_image_bytes": 100, "image_urls": "refuse"}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        three = {"model": SEEING, "messages": [{"role": "user", "content": [make_part(URL)] * 3}]}
        large = make_body(f"data:image/png;base64,{'A' * 400}")
        for body, setting in (
            (three, "MAX_IMAGES"),
            (large, "MAX_IMAGE_BYTES"),
            (make_body("https://a.example/"), "IMAGE_URLS"),
        ):
            reply = await gateway.post("/v1/chat/completions", body)
            assert (reply.status, setting in reply.body["error"]["message"]) == (400, True), reply.body
    assert not simulator.requests


async def test_images_of_earlier_messages_are_replaced_for_a_blind_model(shared_gateway: Gateway) -> None:
    earlier = make_body(URL)["messages"]
    messages = [*earlier, {"role": "assistant", "content": "A pixel."}, {"role": "user", "content": "Thanks."}]
    reply = await shared_gateway.post("/v1/chat/completions", {"model": BLIND, "messages": messages})
    assert reply.status == 200, reply.body
    assert "cannot see" in reply.headers["X-Gateway-Warnings"]
    sent = str(shared_gateway.simulator.requests[-1]["messages"])
    assert "image_url" not in sent
    assert "an image that this model cannot see" in sent
    dropped = await shared_gateway.post("/v1/chat/completions", make_body(URL, BLIND, drop_unsupported=True))
    if dropped.status == 400:  # the field is the gateway's own
        dropped = await shared_gateway.post("/api/v1/chat", make_body(URL, BLIND, drop_unsupported=True))
    assert dropped.status == 200, dropped.body


async def test_image_of_a_clients_tool_does_not_break_its_loop(shared_gateway: Gateway) -> None:
    """Claude Code sends images that its tool read.

    An error would come back at every step.
    """
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    messages = [
        {"role": "user", "content": "Read a.png"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "Read", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [image]}]},
    ]
    body = {"max_tokens": 100, "messages": messages}
    blind = await shared_gateway.post("/v1/messages", body | {"model": BLIND})
    assert blind.status == 200, blind.body
    seeing = await shared_gateway.post("/v1/messages", body | {"model": SEEING})
    assert "I see 1 image(s)" in str(seeing.body)


@pytest.fixture
async def camera(database_url: str, simulator: Simulator, tmp_path: Path) -> AsyncGenerator[Gateway]:
    """A gateway with a tool whose result has images."""

    def call(params: dict[str, Any], _request: Any) -> dict[str, Any]:
        blocks = [
            {"type": "text", "text": "two photos"},
            {"type": "image", "data": PIXEL, "mimeType": "image/png"},
            {"type": "image", "data": PIXEL, "mimeType": "image/svg+xml"},
            {"type": "image", "data": PIXEL, "mimeType": "image/jpeg"},
        ]
        return {"content": blocks}

    server = RawServer(make_raw_tool("photo"), modern=True, tools__call=call)
    async with serve_raw(database_url, simulator, tmp_path, {"camera": (server, {})}) as gateway:
        yield gateway


@pytest.mark.faults
async def test_images_of_tool_results_reach_models_that_see(camera: Gateway) -> None:
    simulator = camera.simulator
    calls = [{"name": "camera_photo", "arguments": {}}]
    for model in (SEEING, BLIND):
        simulator.faults.add_faults(Fault(kind="tool_calls", calls=calls))
        reply = await camera.chat("Take a photo", model=model)
        assert reply.status == 200, reply.body
    seen, blind = ([m for m in simulator.requests[n]["messages"] if m["role"] != "system"] for n in (1, 3))
    assert [message["role"] for message in seen] == ["user", "assistant", "tool", "user"]
    urls = [part["image_url"]["url"].partition(";")[0] for part in seen[-1]["content"] if part["type"] == "image_url"]
    assert urls == ["data:image/png", "data:image/jpeg"]
    assert "shown below" in seen[2]["content"]
    assert [message["role"] for message in blind] == ["user", "assistant", "tool"]
    assert "not shown to you" in blind[2]["content"]


@pytest.mark.faults
async def test_fallback_that_cannot_see_gets_a_note(database_url: str, simulator: Simulator, tools_url: str) -> None:
    settings: dict[str, Any] = {"model_fallbacks": (BLIND,), "model_retries": 0}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        simulator.faults.add_faults(Fault(kind="status", status=500, match=SEEING))
        client = openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0)
        async with client:
            answer = await client.chat.completions.create(**make_body(URL))
    assert answer.choices[0].message.content
    assert "image_url" not in str(simulator.requests[-1]["messages"])
