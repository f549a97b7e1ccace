"""Clients in Node, with the packages that `make node` installs."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running_stack import ROOT

NODE = ROOT / "tests" / "node"
NODE_22 = NODE / "node_modules" / ".bin" / "node"
"""Path of Node 22, for version 7 of the AI SDK."""


def require_node(package: str = "") -> pytest.MarkDecorator:
    """Skip a test outside CI if Node or the package is missing."""
    missing = shutil.which("node") is None or bool(package and not (NODE / "node_modules" / package).exists())
    requirement = f"Node and {package}: `make node`" if package else "Node"
    return pytest.mark.skipif("CI" not in os.environ and missing, reason=f"needs {requirement}")


async def run_script(script: str, *arguments: str, node: str | Path = "node") -> Any:
    """Run a script of `tests/node` and return its last line's JSON."""
    process = await asyncio.create_subprocess_exec(
        str(node),
        str(NODE / script),
        *arguments,
        cwd=NODE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out.decode().splitlines()[-1])


async def bundle(source: Path, target: Path, *options: str) -> None:
    """Bundle a program with the packages of `tests/node`."""
    process = await asyncio.create_subprocess_exec(
        *(str(NODE / "node_modules/.bin/esbuild"), str(source), "--bundle", f"--outfile={target}", "--alias:ai=ai7"),
        *("--log-level=warning", *options),
        env=os.environ | {"NODE_PATH": str(NODE / "node_modules")},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, err = await process.communicate()
    assert process.returncode == 0, err.decode()


async def build_page(example: str, directory: Path) -> None:
    """Write `page.html` with a program of examples/."""
    await bundle(ROOT / "examples" / example, directory / "page.js", "--jsx=automatic")
    (directory / "page.html").write_text('<!doctype html><meta charset="utf-8"><script defer src="page.js"></script>')


_REQUIRE = 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);'
"""Start of a bundle whose CommonJS packages import Node's own modules."""


async def build_program(example: str, directory: Path) -> Path:
    """Bundle a program of examples/ for Node."""
    target = directory / "program.mjs"
    await bundle(ROOT / "examples" / example, target, "--platform=node", "--format=esm", f"--banner:js={_REQUIRE}")
    return target


async def run_program(example: str, directory: Path, gateway_url: str, *arguments: str) -> str:
    """Bundle and run a program of examples/; return its output."""
    target = await build_program(example, directory)
    process = await asyncio.create_subprocess_exec(
        *(str(NODE_22), str(target), *arguments),
        env=os.environ | {"GATEWAY_URL": gateway_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(90):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()
