"""Client of Groq and of the simulator, which has Groq's wire format."""

import groq
import httpx

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

_ROOT = "/openai/v1"


def create_groq_model(
    *,
    api_key: str,
    base_url: str,
    idle_timeout: float = 60.0,
    limiter: Limiter | None = None,
    queue_seconds: float = 30.0,
    recorder: Recorder | None = None,
) -> OpenAICompatibleModel:
    """Create a model client with Groq's SDK.

    `base_url` does not include `/openai/v1`. `idle_timeout` is in seconds between two reads.
    """
    client = groq.AsyncGroq(
        api_key=api_key,
        base_url=base_url,
        max_retries=0,  # `ResilientModel` retries, visibly to clients
        timeout=httpx.Timeout(idle_timeout, connect=CONNECT_TIMEOUT_SECONDS),
        http_client=create_http_client(recorder),
        default_headers=make_default_headers(groq),
    )
    return OpenAICompatibleModel(
        client,
        groq,
        make_request_body,
        root=_ROOT,
        key_setting="GROQ_API_KEY",
        limiter=limiter,
        queue_seconds=queue_seconds,
    )


def make_request_body(call: ModelCall) -> JsonObject:
    """Build the body of a call. Groq names the limit of output tokens `max_completion_tokens`."""
    body = make_chat_body(call)
    if "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    return body
