"""Schemathesis over the OpenAPI document: whatever is sent, no server error and no answer that is not declared.

It is not asked about laxity (numbers that come as text are taken) nor about rules that no schema can tell (a date that
is past is refused): `negative_data_rejection` and `positive_data_acceptance`.
"""

import asyncio
import sys
from pathlib import Path

import pytest

from gateway.llm.simulator import Simulator
from tests.keyring import Keyring
from tests.stack import Gateway, serve_gateway

LAX = "negative_data_rejection,positive_data_acceptance"


@pytest.mark.parametrize(("caller", "examples"), [("admin", 3), ("viewer", 1), ("nobody", 1)])
async def test_no_request_makes_a_server_error_or_an_undeclared_answer(
    database_url: str, simulator: Simulator, tools_url: str, tmp_path: Path, caller: str, examples: int
) -> None:
    async with serve_gateway(database_url, simulator, tools_url, rate_limit_enabled=False) as gateway:
        ring = Keyring(gateway)
        await ring.make("ada", role="viewer" if caller == "viewer" else "admin")
        options = [] if caller == "nobody" else ["--header", f"X-API-Key: {ring.secrets['ada']}"]
        code, told = await schemathesis(gateway, tmp_path, *options, "--max-examples", str(examples))
        assert code == 0, told


async def schemathesis(gateway: Gateway, directory: Path, *options: str) -> tuple[int, str]:
    """Its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.base_url}/openapi.json",
        "--seed", "20261121", "--phases", "examples,fuzzing", "--checks", "all", "--exclude-checks", LAX,
        "--warnings", "off", "--no-shrink", "--request-timeout", "5", "--generation-database", "none", *options,
        cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return process.returncode or 0, out.decode()
