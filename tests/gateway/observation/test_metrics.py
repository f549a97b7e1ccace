"""The page of metrics, as Prometheus reads it."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from gateway.observation.families import FAMILIES
from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.eventually import eventually
from tests.stack import Gateway, find_free_port, serve_gateway

ROOT = Path(__file__).parent.parent.parent.parent
ADMIN_KEY = "the-admin-key-of-these-tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


async def read_page(gateway: Gateway, url: str | None = None, **headers: str) -> str:
    async with gateway.session.get(url or f"{gateway.base_url}/metrics", headers=headers or ADMIN) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def read_samples(gateway: Gateway, url: str | None = None) -> list[Sample]:
    page = await read_page(gateway, url)
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def find_value(samples: list[Sample], name: str, **labels: str) -> float:
    found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    assert found, f"no {name} {labels}"
    return sum(found)


@pytest.fixture
async def watched(database_url: str, simulator: Simulator, tools_url: str) -> AsyncGenerator[Gateway]:
    async with serve_gateway(database_url, simulator, tools_url, metrics=True, api_key=ADMIN_KEY) as gateway:
        yield gateway


async def test_turn_with_a_tool_is_counted_in_every_family_of_it(watched: Gateway) -> None:
    reply = await watched.post(
        "/api/v1/chat", {"messages": [{"role": "user", "content": "What is 17 * 23?"}]}, headers=ADMIN
    )
    assert reply.status == 200
    samples = await read_samples(watched)
    model = reply.body["model"]
    turn = {"outcome": "completed", "model": model, "format": "native", "stop_reason": "stop"}
    assert find_value(samples, "gateway_turns_total", **turn) == 1
    assert (
        find_value(
            samples, "gen_ai_invoke_agent_duration_seconds_count", gen_ai_request_model=model, outcome="completed"
        )
        == 1
    )
    assert find_value(samples, "gateway_turn_time_to_first_token_seconds_count", model=model) == 1
    usage = reply.body["usage"]
    assert find_value(samples, "gateway_tokens_total", model=model, type="input") == usage["prompt_tokens"]
    assert find_value(samples, "gateway_tokens_total", model=model, type="output") == usage["completion_tokens"]
    assert find_value(samples, "gateway_cost_usd_total", model=model) == pytest.approx(reply.body["cost_usd"])
    tool = {"tool": "calculator"}
    assert find_value(samples, "gateway_tool_calls_total", outcome="ok", **tool) == 1
    assert find_value(samples, "gen_ai_execute_tool_duration_seconds_count", gen_ai_tool_name="calculator") == 1
    assert find_value(samples, "mcp_client_operation_duration_seconds_count", mcp_method_name="tools/call") == 1
    assert (
        find_value(samples, "gen_ai_client_operation_duration_seconds_count", gen_ai_request_model=model, error_type="")
        == 2
    )
    assert (
        find_value(samples, "gen_ai_client_operation_time_to_first_chunk_seconds_count", gen_ai_response_model=model)
        == 2
    )
    assert find_value(samples, "gateway_journal_commit_duration_seconds_count") >= 2
    assert find_value(samples, "gateway_mcp_servers", state="up") == 1
    assert find_value(samples, "gateway_workers") == 1
    assert (
        find_value(
            samples,
            "http_server_request_duration_seconds_count",
            http_route="/api/v1/chat",
            http_response_status_code="200",
        )
        == 1
    )


async def test_every_family_is_on_the_page(watched: Gateway) -> None:
    page = await read_page(watched)
    names = {family.prometheus_name for family in FAMILIES}
    assert names <= {family.name for family in text_string_to_metric_families(page)}


async def test_refusals_are_counted_by_code_and_not_by_path(watched: Gateway) -> None:
    for path in ("/api/v1/turns/x", "/nothing/here", "/nothing/there"):
        await watched.get(path)
        await watched.get(path, headers=ADMIN)
    samples = await read_samples(watched)
    assert find_value(samples, "gateway_refusals_total", code="not_authenticated", status="401") >= 1
    assert not [s for s in samples if "nothing" in str(s.labels)]


async def test_metrics_need_the_scope_by_name_or_an_admin(watched: Gateway) -> None:
    keyring = Keyring(watched)
    await keyring.create_key("plain")
    await keyring.create_key("prometheus", "viewer", scopes=("metrics",))
    await keyring.create_key("other", scopes=("chat",))
    owners = ("plain", "prometheus", "other")
    statuses = {owner: await keyring.request_status("GET", owner, "/metrics") for owner in owners}
    assert statuses == {"plain": 403, "prometheus": 200, "other": 403}
    async with watched.session.get(f"{watched.base_url}/metrics") as response:
        assert response.status == 401


async def test_metrics_are_not_found_while_they_are_off(gateway: Gateway) -> None:
    assert (await gateway.get("/metrics")).status == 404


async def test_own_port_serves_metrics_on_loopback_without_a_key(
    database_url: str, simulator: Simulator, tools_url: str
) -> None:
    port = find_free_port()
    settings = {"metrics": True, "metrics_port": port, "api_key": ADMIN_KEY}
    async with serve_gateway(database_url, simulator, tools_url, **settings) as gateway:
        url = f"http://127.0.0.1:{port}"
        await eventually(lambda: is_open(gateway, url))
        assert "gateway_workers" in await read_page(gateway, f"{url}/metrics", Accept="text/plain")
        async with gateway.session.get(f"{url}/metrics", headers={"Host": "evil.example"}) as response:
            assert response.status == 421
        async with gateway.session.get(f"{url}/") as response:
            assert response.status == 404
        assert (await gateway.get("/metrics", headers=ADMIN)).status == 404


async def is_open(gateway: Gateway, url: str) -> bool:
    try:
        async with gateway.session.get(f"{url}/metrics") as response:
            return response.status == 200
    except OSError:
        return False


def test_label_values_are_bounded() -> None:
    from gateway_runtime.telemetry.families import MetricFamily
    from gateway_runtime.telemetry.metrics import Metrics

    metrics = Metrics([MetricFamily("test.calls", "counter", "Calls.", ("tool", "server"))])
    for number in range(1_000):
        metrics.increase_counter("test.calls", 1, f"tool {number}" + "x" * 500, f"server {number % 50}")
    page, _ = metrics.render()
    (family,) = [f for f in text_string_to_metric_families(page.decode()) if f.name == "test_calls"]
    values = {sample.labels["tool"] for sample in family.samples}
    assert len(values) == 201
    assert max(map(len, values)) <= 100
    assert sum(sample.value for sample in family.samples) == 1_000


def test_table_in_operations_has_every_metric_with_its_labels() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for family in FAMILIES:
        name = family.prometheus_name + ("_total" if family.kind == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in family.prometheus_labels) or "-"
        assert f"| `{name}` | {family.kind} | {labels} | {family.help} |" in page
