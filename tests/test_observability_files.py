"""Dashboards, alerts and the profile `observability` of compose.yaml."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.observation.families import FAMILIES
from tests.stack import ServeSharedGateway

ROOT = Path(__file__).parent.parent
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
GRAFANA_VARIABLES = {"$__rate_interval": "5m"}
FROM_PROMETHEUS = {"up": {"job", "instance"}}
"""Metrics that Prometheus itself makes, with their labels."""


def list_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def list_queries() -> Iterator[tuple[str, str]]:
    for rule in list_rules():
        yield rule["alert"], rule["expr"]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']}", target["expr"]


def list_selectors(query: str) -> list[Any]:
    """Parse a query and return its selectors.

    Raises:
        ValueError: the query is not valid.
    """
    for name, value in GRAFANA_VARIABLES.items():
        query = query.replace(name, value)
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


def read_labels(query: str) -> set[str]:
    """Return the labels that a query groups by."""
    groups = re.findall(r"\b(?:by|without|ignoring|on) \(([^)]*)\)", query)
    return {label.strip() for group in groups for label in group.split(",") if label.strip()}


@pytest.fixture(scope="module")
async def page(serve_shared_gateway: ServeSharedGateway) -> dict[str, set[str]]:
    """Metrics of a running gateway, with the labels of their families."""
    gateway = await serve_shared_gateway(metrics=True)
    async with gateway.session.get(f"{gateway.base_url}/metrics") as response:
        families = list(text_string_to_metric_families(await response.text()))
    labels = {family.prometheus_name: set(family.prometheus_labels) for family in FAMILIES}
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return FROM_PROMETHEUS | {
        f"{family.name}{suffix}": labels[family.name] | {"job"} | ({"le"} if suffix == "_bucket" else set())
        for family in families
        if family.name in labels
        for suffix in suffixes[family.type]
    }


async def test_every_query_names_metrics_and_labels_of_the_page(page: dict[str, set[str]]) -> None:
    queries = dict(list_queries())
    assert len(queries) > 50
    for title, query in queries.items():
        selectors = list_selectors(query)
        assert selectors, title
        allowed: set[str] = set()
        for selector in selectors:
            assert selector.name in page, f"{title}: {selector.name}"
            labels = {matcher.name for matcher in selector.matchers.matchers}
            assert labels <= page[selector.name], f"{title}: {labels}"
            allowed |= page[selector.name]
        assert read_labels(query) <= allowed, title


def test_wrong_query_is_found() -> None:
    with pytest.raises(ValueError, match="invalid promql query"):
        list_selectors("sum by (x (rate(a[5m])))")


def test_legends_name_labels_of_their_query() -> None:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert named <= read_labels(target["expr"]), panel["title"]


def test_each_alert_has_its_section_in_operations() -> None:
    for rule in list_rules():
        assert f"### {rule['alert']}\n" in OPERATIONS
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    named = re.findall(r"^### (Gateway\w+)$", OPERATIONS, re.MULTILINE)
    assert named == [rule["alert"] for rule in list_rules()]


def test_every_metric_is_on_a_dashboard() -> None:
    queries = " ".join(query for _, query in list_queries())
    assert [family.prometheus_name for family in FAMILIES if family.prometheus_name not in queries] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)")
def test_rule_checker_accepts_the_alerts() -> None:
    run = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_profile_runs_what_the_files_name() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    profile = {name for name, service in services.items() if service.get("profiles") == ["observability"]}
    assert profile == {"prometheus", "grafana", "jaeger", "collector"}
    targets = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    assert targets[0]["static_configs"] == [{"targets": ["gateway:9464"]}]
    assert services["gateway"]["environment"]["METRICS_PORT"] == "${METRICS_PORT:-9464}"
    sources = yaml.safe_load(next((ROOT / "deploy/grafana/provisioning/datasources").iterdir()).read_text())
    assert {re.split("[:/]+", source["url"])[1] for source in sources["datasources"]} <= profile
    uids = {source["uid"] for source in sources["datasources"]}
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} <= uids
    for service in profile:
        for volume in services[service].get("volumes", ()):
            if volume.startswith("./"):
                assert (ROOT / volume.split(":")[0]).exists()
