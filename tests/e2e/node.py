"""Clients in Node, where Node and what `make node` installs are there."""

import asyncio
import json
import os
import shutil
from typing import Any

import pytest

from tests.e2e.up import ROOT

NODE = ROOT / "tests" / "node"


def needs(package: str = "") -> pytest.MarkDecorator:
    """Skip with a reason where Node or the package is missing; in CI they must be there."""
    missing = shutil.which("node") is None or bool(package and not (NODE / "node_modules" / package).exists())
    wanted = f"Node and {package}: `make node`" if package else "Node"
    return pytest.mark.skipif("CI" not in os.environ and missing, reason=f"needs {wanted}")


async def run(script: str, *arguments: str) -> Any:
    """The JSON that a script of `tests/node` prints last."""
    process = await asyncio.create_subprocess_exec(
        "node", str(NODE / script), *arguments,
        cwd=NODE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out.decode().splitlines()[-1])
