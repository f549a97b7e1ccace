"""The calculation of what a load needs, and the page that shows it."""

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Table
from sqlmodel import SQLModel

import gateway.store.models  # noqa: F401
import tools_server.tasks.models  # noqa: F401
from benchmarks.costs import LABELS, PAGE, Costs, load, table
from benchmarks.scaling import Load, Machine, Plan, examples, main, plan, stop


@pytest.fixture
def costs() -> Costs:
    return load()


def found(costs: Costs, machine: Machine = Machine(), **given: float) -> Plan:  # noqa: B008 - frozen
    return plan(costs, replace(Load(), **given), machine)


def test_page_shows_the_costs_that_the_calculation_uses_and_what_comes_of_them(costs: Costs) -> None:
    page = Path(PAGE).read_text()
    assert table(costs) in page
    assert costs.measured in page
    assert examples(costs) in page
    assert set(LABELS) == set(Costs.__struct_fields__) - {"measured"}


def test_twice_the_users_need_twice_of_what_grows_with_them(costs: Costs) -> None:
    one, two = found(costs, users=2_000), found(costs, users=4_000)
    assert two.streams == pytest.approx(2 * one.streams)
    assert two.needs[0].needed == pytest.approx(2 * one.needs[0].needed)
    assert 1 <= one.workers <= two.workers <= 2 * one.workers


def test_first_limit_is_the_one_that_is_short(costs: Costs) -> None:
    for short, name in (
        (Machine(cores=1, connections=100_000), "cores"),
        (Machine(cores=1_000, connections=12), "connections to Postgres"),
        (Machine(cores=1_000, connections=100_000, commit_ms=40), "commits a second"),
        (Machine(cores=1_000, connections=100_000, memory_gb=1), "memory, GB"),
    ):
        users, first = stop(costs, Load(), short)
        assert first.what == name
        assert found(costs, short, users=users).first.share > 1 >= found(costs, short, users=users // 2).first.share


def test_disk_is_full_the_sooner_the_longer_the_journal_is_kept(costs: Costs) -> None:
    short, long = found(costs, journal_days=1), found(costs, journal_days=60)
    assert short.days > long.days > 0
    assert found(costs, Machine(disk_gb=0.1)).days == 0


def test_every_assumption_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--users", "500", "--tokens", "100", "--cores", "2", "--use", "0.5", "--tool-calls", "2"])
    assert "500 users" in capsys.readouterr().out


def test_page_says_of_every_table_whether_it_could_be_distributed_by_owner() -> None:
    told: dict[str, bool] = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[2] in ("yes", "no"):
            told |= dict.fromkeys((name.strip("` ") for name in cells[1].split(",")), cells[2] == "yes")
    assert told == {found.fullname: distributable(found) for found in SQLModel.metadata.tables.values()}


def distributable(kept: Table) -> bool:
    """Whether its primary key, its unique indexes and its foreign keys hold whose it is."""
    keys = [{column.name for column in kept.primary_key.columns}]
    keys += [{column.name for column in index.columns} for index in kept.indexes if index.unique]
    keys += [set(key.column_keys) for key in kept.foreign_key_constraints]
    return all(key & {"owner", "user_id"} for key in keys)
