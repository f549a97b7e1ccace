"""What the suite replaces in libraries and in the gateway to run faster. `--no-shortcuts` runs it without.

A run starts some 500 HTTP servers and a thousand gateways and tool servers in three processes, so what a process does
once in production is done hundreds of times here. No test depends on a replacement; each only saves time:

- uvicorn checks ten times a second whether it should stop. Here it checks every 5 ms.
- A gateway collects garbage and freezes what is left when it starts. Here it does neither: a full collection takes
  longer in each gateway, for the heap of the test process grows.
- The MCP SDK derives a JSON schema from the signature of each tool of each server. Here it does so once a signature.
- SQLAlchemy compiles the statements of each engine. Here all engines of the process share one cache, which also needs
  their dialects to be equal: part of its key is the dialect.
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
import gateway.store.database
import tools_server.tasks.store

_UVICORN_POLL_SECONDS = 0.005


@contextmanager
def shortcuts() -> Generator[None]:
    """Install all replacements, and take them back in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.server, "asyncio", _AsyncioWithShortSleeps())
        patch.setattr(gateway.app, "gc", _GcWithoutCollections())
        patch.setattr(mcp_tools, "func_metadata", _FuncMetadataCache())
        options = {"compiled_cache": LRUCache(2_000)}
        for module in (gateway.store.database, tools_server.tasks.store):
            patch.setattr(module, "create_async_engine", partial(create_async_engine, execution_options=options))
        patch.setattr(PGDialect_asyncpg, "__hash__", _hash_dialect)
        patch.setattr(PGDialect_asyncpg, "__eq__", _equal_dialects)
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
    """`func_metadata` of the SDK, which depends on a function's code and signature alone."""

    def __init__(self) -> None:
        self._known: dict[Any, FuncMetadata] = {}

    def __call__(
        self, func: Callable[..., Any], skip_names: Sequence[str] = (), structured_output: bool | None = None
    ) -> FuncMetadata:
        signature = [repr(getattr(func, name, None)) for name in ("__annotations__", "__defaults__", "__kwdefaults__")]
        key = (getattr(func, "__code__", func), *signature, *skip_names, structured_output)
        if key not in self._known:
            self._known[key] = func_metadata(func, skip_names, structured_output)
        return self._known[key]


def _hash_dialect(dialect: Any) -> int:
    return hash(dialect._json_serializer)


def _equal_dialects(dialect: Any, other: Any) -> bool:
    return dialect._json_serializer is getattr(other, "_json_serializer", 0)
