"""Client of Groq and of the simulator, which has Groq's wire format."""

import groq

from gateway.domain.messages import JsonObject
from gateway.llm.client import ModelServerOptions, OpenAICompatibleModel, make_chat_body
from gateway.ports.model import ModelCall

_ROOT = "/openai/v1"


def create_groq_model(options: ModelServerOptions) -> OpenAICompatibleModel:
    """Create a model client with Groq's SDK.

    The `base_url` does not include `/openai/v1`.
    """
    client = groq.AsyncGroq(**options.make_client_arguments(groq))
    return OpenAICompatibleModel(client, groq, make_request_body, options, root=_ROOT, key_setting="GROQ_API_KEY")


def make_request_body(call: ModelCall) -> JsonObject:
    """Build the body of a call.

    Groq names the limit of output tokens `max_completion_tokens`.
    """
    body = make_chat_body(call)
    if "max_tokens" in body:
        body["max_completion_tokens"] = body.pop("max_tokens")
    return body
