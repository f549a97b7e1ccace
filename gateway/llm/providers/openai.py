"""Client of OpenAI and of servers with its API.

Such servers are vLLM, Ollama and llama.cpp.
"""

from functools import partial

from gateway.domain.messages import JsonObject
from gateway.llm.chat_body import make_chat_body
from gateway.llm.client import ModelServerOptions, OpenAICompatibleModel
from gateway.ports.model import ModelCall
from gateway_runtime.process.optional_imports import import_without

import_without("openai", "httpx_aiohttp")  # for a client of the SDK's that is not used, see docs/adr/0016

import openai  # noqa: E402

OPENAI_BASE_URL = "https://api.openai.com/v1"


def create_openai_model(options: ModelServerOptions) -> OpenAICompatibleModel:
    """Create a model client with OpenAI's SDK.

    The `base_url` ends in `/v1`.
    """
    return OpenAICompatibleModel(
        openai.AsyncOpenAI,
        openai,
        partial(make_request_body, official=options.base_url == OPENAI_BASE_URL),
        options,
        root="",
        key_setting="OPENAI_API_KEY",
        streams_structured_output=True,
    )


def make_request_body(call: ModelCall, *, official: bool) -> JsonObject:
    """Build the body of a call. Only OpenAI itself (`official`) knows `max_completion_tokens`."""
    body = make_chat_body(call, official=official) | {"stream_options": {"include_usage": True}}
    if official and "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    if not body.get("tools"):
        body.pop("parallel_tool_calls", None)
    return body
