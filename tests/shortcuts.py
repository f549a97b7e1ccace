"""Replacements in libraries and in the gateway that make tests faster.

`--no-shortcuts` disables them. A run starts hundreds of servers in few processes, so work that a
process does once in production is repeated hundreds of times. No test depends on a replacement:

- uvicorn checks every 5 ms instead of every 100 ms whether it should stop.
- A gateway does not collect and freeze garbage when it starts: with the growing heap of the test process a full
  collection takes longer for each gateway.
- The MCP SDK derives the JSON schema of a tool once per signature, not once per server.
- All SQLAlchemy engines of the process share one cache of compiled statements. Its key contains the dialect, so the
  dialects must be equal.
"""

import asyncio
import gc
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mcp.server.mcpserver.tools.base as mcp_tools
import pytest
import uvicorn
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata, func_metadata
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import LRUCache

import gateway.app
from gateway_runtime.postgres import connections

_UVICORN_POLL_SECONDS = 0.005


@contextmanager
def install_shortcuts() -> Generator[None]:
    """Install all replacements until the context ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _AsyncioWithShortSleeps())
        patch.setattr(gateway.app, "gc", _GcWithoutCollections())
        patch.setattr(mcp_tools, "func_metadata", _FuncMetadataCache())
        options = {"compiled_cache": LRUCache(2_000)}
        create_engine = partial(create_async_engine, execution_options=options)
        patch.setattr(connections, "create_async_engine", create_engine)
        patch.setattr(PGDialect_asyncpg, "__hash__", _hash_dialect)
        patch.setattr(PGDialect_asyncpg, "__eq__", _compare_dialects)
        yield


class _AsyncioWithShortSleeps:
    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(min(seconds, _UVICORN_POLL_SECONDS))


class _GcWithoutCollections:
    def __getattr__(self, name: str) -> Any:
        return getattr(gc, name)

    def collect(self) -> None: ...

    def freeze(self) -> None: ...


class _FuncMetadataCache:
    """Caches the SDK's `func_metadata` per code and signature of a function."""

    def __init__(self) -> None:
        self._cache: dict[Any, FuncMetadata] = {}

    def __call__(
        self, func: Callable[..., Any], skip_names: Sequence[str] = (), structured_output: bool | None = None
    ) -> FuncMetadata:
        signature = [repr(getattr(func, name, None)) for name in ("__annotations__", "__defaults__", "__kwdefaults__")]
        key = (getattr(func, "__code__", func), *signature, *skip_names, structured_output)
        if key not in self._cache:
            self._cache[key] = func_metadata(func, skip_names, structured_output)
        return self._cache[key]


def _hash_dialect(dialect: Any) -> int:
    return hash(dialect._json_serializer)


def _compare_dialects(dialect: Any, other: Any) -> bool:
    return dialect._json_serializer is getattr(other, "_json_serializer", 0)
