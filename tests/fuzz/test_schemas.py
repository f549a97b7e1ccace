"""Schemathesis over both servers, with lag and memory watched."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.simulator import Simulator
from tests.auth_helpers import Keyring
from tests.fuzz.face_requests import load_all_formats
from tests.fuzz.loop_watch import watch_loop
from tests.fuzz.schema_requests import MCP_HEADERS, run_schemathesis, write_tool_server_document
from tests.stack import Gateway, serve_gateway

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "20")
SECONDS = 400


@pytest.mark.timeout(460)
@pytest.mark.parametrize("server", ["gateway", "tool server"])
async def test_requests_of_schemas_cause_no_server_error_lag_or_growth(
    database_url: str, simulator: Simulator, open_tools_url: str, tmp_path: Path, server: str
) -> None:
    async with serve_gateway(database_url, simulator, open_tools_url, rate_limit_enabled=False) as gateway:
        options = ["--max-examples", EXAMPLES]
        if server == "gateway":
            await load_all_formats(gateway)
            keyring = Keyring(gateway)
            await keyring.create_key("ada", role="admin")
            options += ["--header", f"X-API-Key: {keyring.secrets['ada']}"]
            async with watch_loop():
                code, output = await run_schemathesis(gateway.base_url, tmp_path, *options, seconds=SECONDS)
        else:
            code, output = await _fuzz_tool_server(gateway, open_tools_url, tmp_path, options)
        assert code == 0, output
        assert (await gateway.get("/health")).status == 200


async def _fuzz_tool_server(gateway: Gateway, mcp_url: str, directory: Path, options: list[str]) -> tuple[int, str]:
    base_url = f"http://{urlsplit(mcp_url).netloc}"
    async with gateway.session.get(f"{base_url}/tools") as response:
        tools = (await response.json())["tools"]
    document = directory / "tool-server.json"
    write_tool_server_document(tools, document)
    headers = [part for name, value in MCP_HEADERS.items() for part in ("--header", f"{name}: {value}")]
    async with watch_loop():
        return await run_schemathesis(base_url, directory, *headers, *options, document=document, seconds=SECONDS)
