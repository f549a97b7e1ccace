"""Fixture: processes that share a database."""

from collections.abc import AsyncGenerator

import pytest

from tests.e2e.cluster import Cluster, start_cluster


@pytest.fixture
async def cluster(database_url: str) -> AsyncGenerator[Cluster]:
    async with start_cluster(database_url) as running:
        yield running
