"""Tests of `agent-gateway keys` while the gateway runs."""

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from tests.e2e.running_stack import ROOT, clean_environment, gateway_command
from tests.eventually import eventually
from tests.stack import Gateway

pytestmark = pytest.mark.faults


async def run_keys_command(database_url: str, *arguments: str, code: int = 0) -> str:
    """Run `agent-gateway keys …` and return its output."""
    return await run_command(database_url, "keys", *arguments, code=code)


async def run_command(database_url: str, *arguments: str, code: int = 0, **settings: str) -> str:
    """Run `agent-gateway …` and return its output."""
    process = await asyncio.to_thread(
        subprocess.run,
        gateway_command(*arguments),
        cwd=ROOT,
        env=clean_environment(DATABASE_URL=database_url, **settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == code, process.stderr
    return process.stdout + process.stderr


async def wait_until_unauthorized(gateway: Gateway, **options: Any) -> None:
    async def status_is_401() -> bool:
        return (await gateway.get("/v1/models", **options)).status == 401

    await eventually(status_is_401)


async def test_cli_key_is_required_immediately_and_can_be_revoked(
    gateway: Gateway, database_url: str, tmp_path: Path
) -> None:
    assert (await gateway.get("/v1/models")).status == 200
    secret = (
        await run_keys_command(database_url, "create", "--owner", "ada", "--role", "admin", "--tool", "calculator")
    ).split()[0]
    await wait_until_unauthorized(gateway)
    headers = {"X-API-Key": secret}
    assert (await gateway.get("/v1/models", headers=headers)).status == 200
    prefix = secret[:12]
    listed = await run_keys_command(database_url, "list")
    assert prefix in listed
    assert "active" in listed
    assert secret not in listed
    await run_keys_command(database_url, "revoke", prefix)
    await wait_until_unauthorized(gateway, headers=headers)
    assert "revoked" in await run_keys_command(database_url, "list", "--owner", "ada")


async def test_cli_rotates_a_key_with_an_overlap(gateway: Gateway, database_url: str) -> None:
    secret = (await run_keys_command(database_url, "create", "--owner", "ada")).split()[0]
    successor = (await run_keys_command(database_url, "rotate", secret[:12])).split()[0]
    await wait_until_unauthorized(gateway)
    for each in (secret, successor):
        assert (await gateway.get("/v1/models", headers={"X-API-Key": each})).status == 200
    await run_keys_command(database_url, "rotate", secret[:12], "--overlap-hours", "0")
    await wait_until_unauthorized(gateway, headers={"X-API-Key": secret})
    assert (await gateway.get("/v1/models", headers={"X-API-Key": successor})).status == 200
    assert "expired" in await run_keys_command(database_url, "rotate", secret[:12], code=2)


async def test_cli_key_can_have_limits_and_a_budget(database_url: str, db: asyncpg.Connection) -> None:
    limits = ("--requests=5", "--window-seconds=10", "--streams=2")
    budget = ("--tokens-per-day=1000", "--usd-per-month=0.5")
    await run_keys_command(database_url, "create", "--owner", "ada", *limits, *budget)
    row = await db.fetchrow("SELECT limits, budget FROM api_keys")
    assert row is not None
    assert json.loads(row["limits"]) == {"requests": 5, "window_seconds": 10, "streams": 2}
    assert json.loads(row["budget"]) == {"tokens_per_day": 1000, "usd_per_month": 0.5}


async def test_revoking_an_unknown_key_is_an_error(database_url: str) -> None:
    assert "There is no key" in await run_keys_command(database_url, "revoke", "agw_nothing", code=2)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("--requests", "5000000", "--window-seconds", "86400"), ["--requests"]),
        (("--tokens-per-day", "99999999999999999999"), ["--tokens-per-day"]),
        (("--window-seconds", "0", "--streams", "0"), ["--window-seconds", "--streams"]),
        (("--usd-per-day", "nan"), ["--usd-per-day"]),
        (("--owner", ""), ["--owner"]),
        (("--owner", "x y/z"), ["--owner"]),
        (("--name", "x" * 201), ["--name"]),
        (("--scope", "chat", "--scope", "cats", "--tool", ""), ["--scope", "--tool"]),
        (("--expires-days=-1",), ["--expires-days"]),
        (("--expires-days", "nan"), ["--expires-days"]),
        (("--expires-days", "1e12"), ["--expires-days"]),
    ],
)
def test_invalid_key_options_are_reported_one_per_line(arguments: tuple[str, ...], options: list[str]) -> None:
    result = CliRunner().invoke(app, ["keys", "create", "--owner", "ada", *arguments])
    assert (result.exit_code, [line.partition(":")[0] for line in result.output.splitlines()]) == (2, options)


async def test_control_characters_in_the_name_of_a_key_do_not_reach_the_terminal(
    gateway: Gateway, database_url: str
) -> None:
    await gateway.post("/api/v1/keys", {"owner": "root", "role": "admin", "name": "x\x1b]52;c;aGk=\x07\u202e"})
    listed = await run_keys_command(database_url, "list")
    assert r"x\x1b]52;c;aGk=\x07\u202e" in listed
    assert "\x1b" not in listed


@pytest.mark.faults
async def test_control_characters_of_an_export_do_not_reach_the_terminal(gateway: Gateway, database_url: str) -> None:
    await gateway.chat("Say \x9b31m\u202e and \U000e0041")
    reader, terminal = os.openpty()
    os.set_blocking(reader, False)
    process = await asyncio.create_subprocess_exec(
        *gateway_command("users", "export", "local"),
        cwd=ROOT,
        env=clean_environment(DATABASE_URL=database_url),
        stdout=terminal,
    )
    os.close(terminal)
    output = b""

    def has_ended() -> bool:
        nonlocal output
        try:
            while piece := os.read(reader, 65_536):
                output += piece
        except BlockingIOError:
            return False
        except OSError:  # the other end is closed
            return True
        return True

    await eventually(has_ended, timeout_seconds=120)
    os.close(reader)
    assert await process.wait() == 0
    shown = output.decode()
    assert r"Say \u009b31m\u202e and \udb40\udc41" in shown
    assert not any(char in shown for char in "\x9b\u202e\U000e0041")
    rows = [json.loads(line)["row"] for line in shown.splitlines()]
    assert "Say \x9b31m\u202e and \U000e0041" in {row.get("prompt") for row in rows}


async def test_documented_first_key_locks_nobody_out(gateway: Gateway, database_url: str) -> None:
    await gateway.chat("My name is Ada", conversation_id="before")
    output = await run_keys_command(database_url, "create", "--owner", "ada")
    secret = output.split()[0]
    assert "A key of ada (admin)" in output
    await wait_until_unauthorized(gateway)
    headers = {"X-API-Key": secret}
    assert (await gateway.get("/api/v1/admin/stats", headers=headers)).status == 200
    assert "A key of bob (user)" in await run_keys_command(database_url, "create", "--owner", "bob")
    process = await chat_in_process(gateway, "Hello")
    assert (process.returncode, "agent-gateway keys recover" in process.stderr) == (1, True)
    process = await chat_in_process(gateway, "What is 23*19?", "--key", secret)
    assert (process.returncode, "437" in process.stdout) == (0, True), process.stderr


async def chat_in_process(gateway: Gateway, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(
        subprocess.run,
        gateway_command("chat", *arguments, "--url", gateway.base_url),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


async def test_access_is_recovered_at_the_machine_and_audited(
    gateway: Gateway, database_url: str, db: asyncpg.Connection
) -> None:
    await gateway.chat("My name is Ada", conversation_id="before")
    secret = (await run_keys_command(database_url, "create", "--owner", "ada", "--role", "viewer")).split()[0]
    await run_keys_command(database_url, "revoke", secret[:12])
    await wait_until_unauthorized(gateway, headers={"X-API-Key": secret})
    output = await run_keys_command(database_url, "recover")
    recovered = {"X-API-Key": output.split()[0]}
    assert "A key of local (admin)" in output
    assert (await gateway.get("/api/v1/admin/stats", headers=recovered)).status == 200
    assert (await gateway.get("/api/v1/conversations/before", headers=recovered)).status == 200
    entry = await db.fetchrow("SELECT actor, subject FROM audit_log WHERE action = 'key.recover'")
    assert entry is not None
    assert dict(entry) == {"actor": "cli", "subject": f"key {recovered['X-API-Key'][:12]}"}
    assert "--owner" in await run_keys_command(database_url, "recover", "--owner", "a b", code=2)


async def test_first_key_beside_other_credentials_stays_a_users(database_url: str) -> None:
    output = await run_command(database_url, "keys", "create", "--owner", "ada", API_KEY="a-static-key-of-the-tests")
    assert "A key of ada (user)" in output
