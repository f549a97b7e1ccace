"""Tests of the scaling calculation and of the page that shows it."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Table
from sqlmodel import SQLModel

import gateway.store.models
import gateway.store.tables.server_tasks
import gateway.store.tables.toolsets
import gateway.store.tables.upstream
import gateway.store.tables.webhooks  # noqa: F401
import tools_server.tasks.models  # noqa: F401
from benchmarks.costs import LABELS, SCALING_PAGE, Costs, format_costs, load_costs
from benchmarks.scaling import LoadProfile, Machine, Plan, calculate_plan, find_user_limit, format_examples, main


@pytest.fixture
def costs() -> Costs:
    return load_costs()


def plan_load(costs: Costs, machine: Machine = Machine(), **assumptions: float) -> Plan:  # noqa: B008 - frozen
    return calculate_plan(costs, replace(LoadProfile(), **assumptions), machine)


def test_page_shows_the_costs_and_results_of_the_calculation(costs: Costs) -> None:
    page = Path(SCALING_PAGE).read_text()
    assert format_costs(costs) in page
    assert costs.measured in page
    assert format_examples(costs) in page
    assert set(LABELS) == set(Costs.__struct_fields__) - {"measured"}


def test_twice_the_users_need_twice_the_streams_and_cpu(costs: Costs) -> None:
    one, two = plan_load(costs, users=2_000), plan_load(costs, users=4_000)
    assert two.streams == pytest.approx(2 * one.streams)
    assert two.needs[0].needed == pytest.approx(2 * one.needs[0].needed)
    assert 1 <= one.workers <= two.workers <= 2 * one.workers


def test_user_limit_names_the_exhausted_resource(costs: Costs) -> None:
    for short, name in (
        (Machine(cores=1, connections=100_000), "cores"),
        (Machine(cores=1_000, connections=28), "connections to Postgres"),
        (Machine(cores=1_000, connections=100_000, commit_ms=40), "commits per second"),
        (Machine(cores=1_000, connections=100_000, memory_gb=1), "memory, GB"),
    ):
        users, tightest = find_user_limit(costs, LoadProfile(), short)
        assert tightest.resource == name
        assert (
            plan_load(costs, short, users=users).tightest_need.share
            > 1
            >= plan_load(costs, short, users=users // 2).tightest_need.share
        )


def test_longer_journal_retention_fills_the_disk_earlier(costs: Costs) -> None:
    short, long = plan_load(costs, journal_days=1), plan_load(costs, journal_days=60)
    assert short.days_until_full > long.days_until_full > 0
    assert plan_load(costs, Machine(disk_gb=0.1)).days_until_full == 0


def test_every_assumption_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--users", "500", "--tokens", "100", "--cores", "2", "--max-core-use", "0.5", "--tool-calls", "2"])
    assert "500 users" in capsys.readouterr().out


def test_page_lists_every_table_and_whether_its_keys_include_the_owner() -> None:
    listed: dict[str, bool] = {}
    for line in SCALING_PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[2] in ("yes", "no"):
            listed |= dict.fromkeys((name.strip("` ") for name in cells[1].split(",")), cells[2] == "yes")
    assert listed == {table.fullname: has_owner_in_keys(table) for table in SQLModel.metadata.tables.values()}


def has_owner_in_keys(table: Table) -> bool:
    """Return whether all keys of the table include the owner.

    The keys are the primary key, all unique indexes and all foreign keys.
    """
    keys = [{column.name for column in table.primary_key.columns}]
    keys += [{column.name for column in index.columns} for index in table.indexes if index.unique]
    keys += [set(key.column_keys) for key in table.foreign_key_constraints]
    return all(key & {"owner", "user_id"} for key in keys)
