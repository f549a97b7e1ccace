"""Client of OpenAI and of servers with its API, such as vLLM, Ollama and llama.cpp."""

from functools import partial

import httpx
import openai

from gateway.domain.messages import JsonObject
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
    """Create a model client with OpenAI's SDK.

    `base_url` ends in `/v1`. `idle_timeout` is in seconds between two reads.
    """
    client = openai.AsyncOpenAI(
        api_key=api_key,
        base_url=base_url,
        max_retries=0,  # `ResilientModel` retries, visibly to clients
        timeout=httpx.Timeout(idle_timeout, connect=CONNECT_TIMEOUT_SECONDS),
        http_client=create_http_client(recorder),
        default_headers=make_default_headers(openai),
    )
    return OpenAICompatibleModel(
        client,
        openai,
        partial(make_request_body, official=base_url == OPENAI_BASE_URL),
        root="",
        key_setting="OPENAI_API_KEY",
        streams_structured_output=True,
        limiter=limiter,
        queue_seconds=queue_seconds,
    )


def make_request_body(call: ModelCall, *, official: bool) -> JsonObject:
    """Build the body of a call. Only OpenAI itself (`official`) knows `max_completion_tokens`."""
    body = make_chat_body(call) | {"stream_options": {"include_usage": True}}
    if official and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if not body.get("tools"):
        body.pop("parallel_tool_calls", None)
    return body
