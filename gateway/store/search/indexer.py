"""Adds the terms of turns that ended without them.

They are turns of an older release, and turns whose texts are too long for the commit at their end.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Sequence

from sqlalchemy import text

from gateway.common.concurrency import SupervisedTask
from gateway.common.logging import get_logger
from gateway.domain.errors import StorageUnavailable
from gateway.store.database import Database, DatabaseRow
from gateway.store.search.vector import MAX_TEXT_LENGTH, build_search_vector

log = get_logger(__name__)

BATCH_ROWS = 50
BATCH_CHARS = 50_000
POLL_SECONDS = 5.0
_MAX_SKIPPED_BATCHES = 4
_BATCH_SECONDS = 30.0
_PAUSE_FACTOR = 4
"""Length of a pause, in times of the batch before it.

Without it, turns of this worker would be slower.
"""
_ENDED = "NOT has_terms AND status NOT IN ('running', 'waiting')"
# The order is that of the index.
_SELECT = f"""
SELECT id, epoch, left(prompt, {MAX_TEXT_LENGTH}), left(response, {MAX_TEXT_LENGTH}) FROM turns
WHERE {_ENDED} ORDER BY owner, id DESC LIMIT :rows OFFSET :skipped"""  # noqa: S608
# The epoch is the fence: it has changed if a worker has claimed the turn. Locked rows are left for a later batch.
_UPDATE = text(f"""
WITH owned AS MATERIALIZED (
    SELECT turns.id, terms FROM turns
    JOIN unnest(cast(:ids AS uuid[]), cast(:epochs AS int[]), cast(:terms AS text[])) AS batch (id, epoch, terms)
        ON turns.id = batch.id AND turns.epoch = batch.epoch
    WHERE {_ENDED} FOR NO KEY UPDATE OF turns SKIP LOCKED)
UPDATE turns SET search = terms::tsvector, has_terms = true FROM owned WHERE turns.id = owned.id""")  # noqa: S608


class SearchIndexer:
    """Adds the terms in small batches, with pauses.

    The workers of a database start at different batches, as a batch of two of them is indexed only once.
    """

    def __init__(self, database: Database) -> None:
        self.task = SupervisedTask("search indexer", self._run_forever)
        self._database = database

    async def index_batch(self, *, rows: int = BATCH_ROWS, skipped: int = 0) -> int:
        """Add the terms of a batch of turns.

        Return their number. `skipped`: number of turns before the batch.
        """
        batch = _cut_batch(await self._database.fetch_rows(_SELECT, rows=rows, skipped=skipped))
        if not batch:
            return await self.index_batch(rows=rows) if skipped else 0
        ids, epochs, prompts, responses = map(list, zip(*batch, strict=True))
        terms = await asyncio.to_thread(_build_vectors, prompts, responses)
        async with self._database.session(seconds=_BATCH_SECONDS) as session:
            connection = await session.connection()
            result = await connection.execute(_UPDATE, {"ids": ids, "epochs": epochs, "terms": terms})
        return result.rowcount

    async def _run_forever(self) -> None:
        while True:
            started_at = time.monotonic()
            skipped = random.randrange(_MAX_SKIPPED_BATCHES) * BATCH_ROWS  # noqa: S311 - spreads load
            try:
                indexed = await self.index_batch(skipped=skipped)
            except StorageUnavailable:
                log.warning("search_indexing_failed")
                indexed = 0
            pause = (time.monotonic() - started_at) * _PAUSE_FACTOR
            await asyncio.sleep(min(pause, POLL_SECONDS) if indexed else POLL_SECONDS)


def _cut_batch(rows: Sequence[DatabaseRow]) -> Sequence[DatabaseRow]:
    """Return the first rows, with about `BATCH_CHARS` characters."""
    chars = 0
    for number, (_, _, prompt, response) in enumerate(rows, 1):
        chars += len(prompt) + len(response)
        if chars > BATCH_CHARS:
            return rows[:number]
    return rows


def _build_vectors(prompts: Iterable[str], responses: Iterable[str]) -> list[str]:
    return [build_search_vector(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
