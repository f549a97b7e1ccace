"""OpenAI, or any server with its chat completions: vLLM, Ollama, llama.cpp, …"""

from functools import partial
from typing import Any

import httpx
import openai

from gateway.llm.client import (
    CONNECT_TIMEOUT_SECONDS,
    OpenAICompatibleModel,
    create_http_client,
    make_chat_body,
    make_default_headers,
)
from gateway.llm.rate_limit.limiter import Limiter
from gateway.llm.recording import Recorder
from gateway.ports.model import ModelCall

OPENAI_BASE_URL = "https://api.openai.com/v1"


def create_openai_model(
    *,
    api_key: str,
    base_url: str = OPENAI_BASE_URL,
    idle_timeout: float = 60.0,
    limiter: Limiter | None = None,
    queue_seconds: float = 30.0,
    recorder: Recorder | None = None,
) -> OpenAICompatibleModel:
    """A `Model` over OpenAI's official SDK. `base_url` ends in `/v1`; `idle_timeout` in seconds, like `queue`."""
    client = openai.AsyncOpenAI(
        api_key=api_key,
        base_url=base_url,
        max_retries=0,  # `ResilientModel` asks again, where a client can see it
        timeout=httpx.Timeout(idle_timeout, connect=CONNECT_TIMEOUT_SECONDS),
        http_client=create_http_client(recorder),
        default_headers=make_default_headers(openai),
    )
    body = partial(make_request_body, official=base_url == OPENAI_BASE_URL)
    return OpenAICompatibleModel(
        client, openai, body, root="", key_setting="OPENAI_API_KEY", streams_structured_output=True,
        limiter=limiter, queue_seconds=queue_seconds,
    )  # fmt: skip


def make_request_body(call: ModelCall, *, official: bool) -> dict[str, Any]:
    """The body of a call. Others than OpenAI itself know `max_tokens` by its old name alone."""
    body = make_chat_body(call) | {"stream_options": {"include_usage": True}}
    if official and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if not body.get("tools"):
        body.pop("parallel_tool_calls", None)
    return body
