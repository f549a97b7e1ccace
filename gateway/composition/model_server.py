"""The model server and its catalog, connected and kept fresh."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from gateway.common.concurrency import SupervisedTask, TaskRegistry
from gateway.composition.observed import choose_limiter, choose_model
from gateway.composition.supervision import supervise
from gateway.config import Settings
from gateway.llm.build import connect_model_server
from gateway.llm.catalog import Catalog
from gateway.llm.passthrough import UpstreamClient
from gateway.llm.rate_limit.limiter import ModelRateLimiter
from gateway.llm.resilient import ResilientModel, RetryPolicy
from gateway.llm.tokenizers.harmony import HarmonyTokenizer
from gateway.ports.observer import Observer
from gateway.ports.tokenizers import Tokenizer
from gateway_runtime.redaction.redactor import Redactor


@dataclass(frozen=True)
class Llm:
    """The model server, its catalog and tokenizer, and the API beyond chat."""

    model: ResilientModel
    catalog: Catalog
    tokenizer: Tokenizer | None
    api: UpstreamClient
    limiter: ModelRateLimiter


@asynccontextmanager
async def build_llm(
    settings: Settings, tasks: TaskRegistry, redactor: Redactor, observer: Observer | None
) -> AsyncGenerator[Llm]:
    """Connect to the model server and keep its catalog fresh."""
    upstream, catalog = connect_model_server(settings, choose_limiter(observer))
    policy = RetryPolicy(
        retries=settings.model_retries,
        delay=settings.model_retry_delay,
        max_wait=settings.model_retry_max_wait,
        text_call_chars=settings.model_text_call_chars,
    )
    create_model = choose_model(observer, settings, redactor)
    model = create_model(upstream, catalog, fallbacks=settings.model_fallbacks, policy=policy)
    refresh = SupervisedTask("model catalog", partial(upstream.refresh_catalog_periodically, catalog))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(upstream.close)
        supervise(refresh, tasks, stack)
        tokenizer = HarmonyTokenizer.find(settings.tiktoken_encodings_base, settings.gateway_data_dir)
        connection = upstream.get_connection()
        api = UpstreamClient(connection, timeout_seconds=settings.upstream_timeout_seconds)
        stack.push_async_callback(api.close)
        yield Llm(model, catalog, tokenizer, api, connection.limiter)
