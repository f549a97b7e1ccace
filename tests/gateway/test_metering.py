"""Usage that the model's server tells of passed-on requests."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from gateway.passthrough.batch_files import BatchEstimate, ModelEstimate
from gateway.passthrough.files import list_batch_usage
from gateway.passthrough.metering import AudioMeter, MeteredUsage, TokenMeter, UsageMeter
from gateway.ports.upstream import UpstreamObject

HUGE = 10**400
"""A number that no float can hold."""
CATALOG: Any = SimpleNamespace(get_model_info=lambda _: SimpleNamespace(calculate_cost=lambda _: 1.0))


@pytest.mark.parametrize("kind", [TokenMeter, AudioMeter])
@pytest.mark.parametrize("field", ["prompt_tokens", "total_tokens", "seconds"])
def test_numbers_of_any_length_are_read(kind: type[UsageMeter], field: str) -> None:
    meter = kind(MeteredUsage())
    meter.feed(b'{"usage": {"%s": %d}}' % (field.encode(), HUGE))
    usage = meter.read("application/json").usage
    assert usage.total_tokens == {"seconds": 10_000_000 if kind is AudioMeter else 0}.get(field, 1_000_000_000)


@pytest.mark.parametrize(("completed", "total", "tokens"), [(HUGE, 1, 100), (1, HUGE, 0), (-HUGE, 4, 0), (1, 4, 25)])
def test_share_of_a_batch_is_bounded(completed: int, total: int, tokens: int) -> None:
    estimate = BatchEstimate("/v1/embeddings", {"m": ModelEstimate(1, 100)})
    batch = UpstreamObject(
        id="batch-1",
        kind="batch",
        owner="ada",
        key=None,
        body={"status": "completed", "request_counts": {"completed": completed, "total": total}},
        estimate=msgspec.to_builtins(estimate),
    )
    [used] = list_batch_usage(batch, CATALOG)
    assert used.usage.total_tokens == tokens
