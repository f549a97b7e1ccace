"""CopilotKit's runtime, with the gateway as its AG-UI agent."""

from pathlib import Path

import pytest

from tests.e2e.node import NODE_22, run_script
from tests.stack import Gateway

HERE = Path(__file__).resolve().parent
PACKAGE = HERE / "node_modules" / "@copilotkit" / "runtime"
pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (PACKAGE.exists() and NODE_22.exists()), reason="needs `make real-servers` and `make node`"),
]


async def test_copilotkit_runs_the_gateway_as_its_agent(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPILOTKIT_TELEMETRY_DISABLED", "true")
    result = await run_script(str(HERE / "copilotkit.mjs"), gateway.base_url, node=NODE_22)
    assert "437" in result["plain"]["text"]
    assert result["plain"]["last"] == "RUN_FINISHED"
    assert "It snows in Oslo." in result["told"]
    assert [interrupt["reason"] for interrupt in result["interrupts"]] == ["approval"]
