"""The chained export of the audit log, over HTTP and by command."""

import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.store.admin.audit_chain import ChainBroken, ChainVerifier
from gateway.store.api_keys import NewKey
from tests.auth_helpers import Keyring
from tests.stack import Gateway


async def fetch_export(keyring: Keyring, after: int = 0) -> list[bytes]:
    url = f"{keyring.gateway.base_url}/api/v1/audit/export?after={after}"
    async with keyring.gateway.session.get(url, headers=keyring.headers("root")) as response:
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        return (await response.read()).splitlines()


def verify(lines: list[bytes], after: int = 0) -> Any:
    verifier = ChainVerifier(after)
    verifier.add_lines(lines)
    return verifier.head


async def fill_log(keyring: Keyring) -> None:
    for number in range(1_200):
        await keyring.gateway.state.audit.write_entry("ada", "test", f"subject {number}", {"n": 1.50, "text": 'ü"\n'})


async def test_export_is_one_chain_over_pages_and_continues_after_an_entry(keyring: Keyring) -> None:
    await fill_log(keyring)
    lines = await fetch_export(keyring)
    head = verify(lines)
    assert (head.first, head.last, len(lines)) == (1, 1_201, 1_201)
    assert json.loads(lines[-1])["entry"]["detail"] == {"n": 1.5, "text": 'ü"\n'}
    rest = await fetch_export(keyring, after=700)
    assert rest == lines[700:]
    assert verify(lines[:700] + rest) == head
    assert verify(rest, after=700).last == head.last
    await keyring.create_key("ada")
    assert (await keyring.get("ada", "/api/v1/audit/export")).status == 403


@pytest.mark.parametrize(
    "attack",
    ["remove", "remove first", "change", "swap", "rehash", "forge first", "add a member", "add an entry"],
)
async def test_gap_or_change_in_an_export_shows(keyring: Keyring, attack: str) -> None:
    for number in range(5):
        await keyring.gateway.state.audit.write_entry("ada", "test", f"subject {number}", {})
    lines = await fetch_export(keyring)
    verify(lines)
    match attack:
        case "remove":
            del lines[2]
        case "remove first":
            del lines[0]
        case "add a member":  # which a reader could take for a part of the entry
            lines[2] = lines[2].replace(b'{"previous"', b'{"actor":"bob","previous"')
        case "add an entry":
            lines[2] = lines[2].replace(b'{"previous"', b'{"entry":{"actor":"bob"},"previous"')
        case "change":
            lines[2] = lines[2].replace(b"subject", b"topic")
        case "swap":
            lines[2], lines[3] = lines[3], lines[2]
        case "rehash":  # a changed entry with a hash of its own does not fit the next one
            import hashlib

            line = json.loads(lines[2])
            entry = lines[2].split(b'"entry":', 1)[1][:-1].replace(b"subject", b"topic")
            forged = hashlib.sha256(line["previous"].encode() + entry).hexdigest()
            lines[2] = b'{"previous":"%b","hash":"%b","entry":%b}' % (
                line["previous"].encode(),
                forged.encode(),
                entry,
            )
        case _:
            lines[0] = lines[0].replace(b'"previous":"0', b'"previous":"1')
    with pytest.raises(ChainBroken):
        verify(lines)


async def test_concurrent_entries_of_two_workers_form_one_chain(workers: list[Gateway]) -> None:
    import asyncio

    keyring = Keyring(workers[0])
    await keyring.create_key("root", role="admin")
    writes = [workers[n % 2].state.audit.write_entry("x", "test", f"{n}", {}) for n in range(60)]
    await asyncio.gather(*writes)
    assert verify(await fetch_export(keyring)).last == 61


async def test_entry_that_the_owner_of_the_table_deletes_or_changes_shows(
    keyring: Keyring, db: asyncpg.Connection
) -> None:
    for number in range(4):
        await keyring.gateway.state.audit.write_entry("ada", "test", f"subject {number}", {})
    await db.execute("ALTER TABLE audit_log DISABLE TRIGGER audit_log_append_only")
    for statement in (
        "DELETE FROM audit_log WHERE seq = 3",
        "UPDATE audit_log SET actor = 'bob' WHERE seq = 2",
    ):
        transaction = db.transaction()
        await transaction.start()
        await db.execute(statement)
        await transaction.commit()
        with pytest.raises(ChainBroken):
            verify(await fetch_export(keyring))


async def test_commands_export_and_verify(keyring: Keyring, database_url: str, tmp_path: Path) -> None:
    import asyncio

    from tests.gateway.test_cli_keys import run_command

    for number in range(3):
        await keyring.gateway.state.keys.create_key(NewKey(f"user {number}"), by="test")
    file = tmp_path / "audit.jsonl"
    await run_command(database_url, "audit", "export", "--output", str(file))
    head = json.loads(file.read_text().splitlines()[-1])["hash"]
    assert f"Entries 1 to 4 are intact. Head: {head}" in await run_command(database_url, "audit", "verify")

    def verify_file(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["audit", "verify", str(file), *arguments])
        return result.exit_code, result.output

    assert (await asyncio.to_thread(verify_file, "--head", head))[0] == 0
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    assert (await asyncio.to_thread(verify_file))[0] == 0
    assert (await asyncio.to_thread(verify_file, "--head", head))[0] == 1
    file.write_text("".join(lines[:1] + lines[2:]))
    assert (await asyncio.to_thread(verify_file))[0] == 1
    file.write_text("".join(lines[2:]))
    assert (await asyncio.to_thread(verify_file))[0] == 1
    assert (await asyncio.to_thread(verify_file, "--after", "2"))[0] == 0
    long_text = {"text": "x" * 2_000_000}
    await keyring.gateway.state.audit.write_entry("ada", "test", "s", long_text)
    assert "Entries 1 to 5 are intact." in await run_command(database_url, "audit", "verify")
