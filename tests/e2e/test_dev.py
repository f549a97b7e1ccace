"""Tests of `make dev`."""

import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.e2e.running_stack import ROOT, run_stack

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.fixture
def directory() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="agw-e2e-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_only_make_dev_reloads_and_allows_development_servers() -> None:
    for target, arguments in (("dev", "up --reload --dev-origins"), ("run", "up")):
        planned = subprocess.run(
            ["make", "--no-print-directory", "-n", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert planned.stdout.splitlines()[-1].endswith(f"bin/agent-gateway {arguments}")


@pytest.mark.faults
async def test_development_servers_are_allowed_beside_the_configured_origins(directory: Path) -> None:
    """`--dev-origins` adds to the origins that an operator wrote."""
    own = "https://app.example.com"
    async with run_stack(directory, "--reload", "--dev-origins", CORS_ORIGINS=own) as stack:
        for origin in (own, "http://localhost:3000", "http://127.0.0.1:5173"):
            headers = {"Origin": origin, **PREFLIGHT}
            async with stack.session.options(f"{stack.base_url}/api/v1/chat", headers=headers) as response:
                assert response.status == 200
                assert response.headers["Access-Control-Allow-Origin"] == origin
        headers = {"Origin": "http://elsewhere.example.com:3000", **PREFLIGHT}
        async with stack.session.options(f"{stack.base_url}/api/v1/chat", headers=headers) as response:
            assert response.status == 403
