"""Client of Groq and of the simulator, which has Groq's wire format."""

from functools import partial

from gateway.domain.messages import JsonObject
from gateway.llm.chat_body import make_chat_body
from gateway.llm.client import ModelServerOptions, OpenAICompatibleModel
from gateway.ports.model import ModelCall
from gateway_runtime.process.optional_imports import import_without

import_without("groq", "httpx_aiohttp")  # for a client of the SDK's that is not used, see docs/adr/0016

import groq  # noqa: E402

GROQ_BASE_URL = "https://api.groq.com"
_ROOT = "/openai/v1"


def create_groq_model(options: ModelServerOptions) -> OpenAICompatibleModel:
    """Create a model client with Groq's SDK.

    The `base_url` does not include `/openai/v1`.
    """
    return OpenAICompatibleModel(
        groq.AsyncGroq,
        groq,
        partial(make_request_body, official=options.base_url == GROQ_BASE_URL),
        options,
        root=_ROOT,
        key_setting="GROQ_API_KEY",
    )


def make_request_body(call: ModelCall, *, official: bool) -> JsonObject:
    """Build the body of a call.

    Groq names the limit of output tokens `max_completion_tokens`.
    """
    body = make_chat_body(call, official=official)
    if "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    return body
