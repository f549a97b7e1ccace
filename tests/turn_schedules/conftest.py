"""The database that all schedules of a file share."""

import asyncio
from collections.abc import Generator

import pytest

from gateway_runtime.embedded_postgres import EmbeddedPostgres
from tests.conftest import _create_database
from tests.turn_schedules.database import ScheduleDatabase


@pytest.fixture(scope="module")
def schedule_database(postgres: EmbeddedPostgres) -> Generator[ScheduleDatabase]:
    with asyncio.Runner() as runner:
        context = _create_database(postgres)
        url = runner.run(context.__aenter__())
        try:
            yield runner.run(ScheduleDatabase.prepare(url))
        finally:
            runner.run(context.__aexit__(None, None, None))
