"""Builds the client of the configured model server."""

from collections.abc import Callable

from gateway.config import Settings
from gateway.llm.catalog import Catalog
from gateway.llm.client import ModelServerOptions, OpenAICompatibleModel
from gateway.llm.rate_limit.limiter import ModelRateLimiter
from gateway.llm.recording import Recorder
from gateway.ports.rate_limit import SharedLimits


def connect_model_server(
    settings: Settings, create_limiter: Callable[..., ModelRateLimiter] = ModelRateLimiter
) -> tuple[OpenAICompatibleModel, Catalog]:
    """Return the model server's client and catalogue."""
    options = _build_options(settings, create_limiter)
    if settings.groq_api_key is not None:
        from gateway.llm.providers.groq import create_groq_model

        return create_groq_model(options), Catalog(aliases=settings.model_aliases, name_map=settings.list_model_names())
    from gateway.llm.providers.openai import OPENAI_BASE_URL, create_openai_model

    is_official = options.base_url == OPENAI_BASE_URL
    unsupported_parameters = (
        ("top_k", "repetition_penalty", "reasoning_format", "include_reasoning") if is_official else ()
    )
    catalog = Catalog(
        (), open_ended=True, unsupported_parameters=unsupported_parameters, name_map=settings.list_model_names()
    )
    return create_openai_model(options), catalog


def _build_options(settings: Settings, create_limiter: Callable[..., ModelRateLimiter]) -> ModelServerOptions:
    secret = settings.groq_api_key or settings.openai_api_key
    assert secret is not None
    key = secret.get_secret_value()
    shared: SharedLimits | None = None
    if settings.redis_url is not None:
        from gateway.llm.rate_limit.redis import RedisLimits

        shared = RedisLimits(settings.redis_url.get_secret_value(), key, timeout_seconds=settings.redis_timeout_seconds)
    return ModelServerOptions(
        api_key=key,
        base_url=settings.groq_base_url if settings.groq_api_key is not None else settings.openai_base_url,
        idle_timeout=settings.model_idle_timeout,
        limiter=create_limiter(shared=shared),
        queue_seconds=settings.model_queue_seconds,
        recorder=Recorder(settings.model_record_dir, key=key) if settings.model_record_dir is not None else None,
    )
