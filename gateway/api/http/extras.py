"""Packages of extras, imported at the first request that needs them."""

import asyncio
from importlib import import_module
from types import ModuleType

from gateway.domain.errors import ExtraNotInstalled


async def import_face(module: str, *, extra: str, package: str) -> ModuleType:
    """Import a module that needs the package of an extra.

    The first import runs in a thread, because it takes up to a second.

    Raises:
        ExtraNotInstalled: the package is not installed.
    """
    try:
        return await asyncio.to_thread(import_module, module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ExtraNotInstalled(
            f"This needs a package that is not installed here: mcp-agent-gateway[{extra}]."
        ) from None
