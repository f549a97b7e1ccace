"""Rotation of the encryption key."""

from pathlib import Path

import asyncpg

from gateway.config import load_settings
from gateway.domain.grants import Grant
from gateway.store.admin.reencryption import reencrypt_secrets
from gateway.store.database import Database
from gateway.store.encryption import KEY_FILE, Cipher, load_encryption_secrets
from gateway.store.mcp_servers import ServerStore
from gateway.store.models import OAuthGrant
from gateway.store.oauth_grants import PostgresGrantStore
from tests.gateway.test_cli_keys import run_command

OLD, NEW, LOST = "old-secret-of-the-tests", "new-secret-of-the-tests", "lost-secret-of-the-tests"
CONFIG = {"url": "https://mcp.example/mcp", "headers": {"Authorization": "Bearer s3cret"}}


async def add_secrets(database: Database, secret: str, name: str) -> None:
    """Store a server's entry and a grant, encrypted with one secret."""
    cipher = Cipher(secret)
    await ServerStore(database, cipher).save_server(name, CONFIG, disabled=False, by="test")
    sealed = cipher.encrypt(b'{"client":{},"access_token":"token"}')
    async with database.session() as session:
        session.add(OAuthGrant(server=name, owner="ada", url="u", sealed=sealed))


async def can_read(database: Database, cipher: Cipher, name: str) -> bool:
    grant = await PostgresGrantStore(database, cipher).get_grant(name, "ada", "u")
    [record] = [each for each in await ServerStore(database, cipher).list_servers() if each.name == name]
    readable = record.config == CONFIG
    assert readable is (grant == Grant(client={}, access_token="token"))
    return readable


async def test_old_keys_decrypt_until_everything_is_encrypted_with_the_new_one(database_url: str) -> None:
    database = Database(database_url)
    try:
        await add_secrets(database, OLD, "a")
        both, new = Cipher(NEW, OLD), Cipher(NEW)
        assert await can_read(database, both, "a")
        assert not await can_read(database, new, "a")
        await add_secrets(database, NEW, "b")
        result = await reencrypt_secrets(database, both, by="test")
        assert (result.encrypted, result.unreadable) == (4, [])
        assert [await can_read(database, new, name) for name in "ab"] == [True, True]
        assert not await can_read(database, Cipher(OLD), "a")
    finally:
        await database.close()


async def test_command_encrypts_again_and_names_what_no_key_decrypts(database_url: str, db: asyncpg.Connection) -> None:
    database = Database(database_url)
    keys = {"GATEWAY_ENCRYPTION_KEY": NEW, "GATEWAY_ENCRYPTION_OLD_KEYS": f"other-secret-of-tests, {OLD}"}
    try:
        await add_secrets(database, OLD, "a")
        assert "2 secrets" in await run_command(database_url, "db", "reencrypt", code=0, **keys)
        assert await can_read(database, Cipher(NEW), "a")
        await add_secrets(database, LOST, "lost")
        output = await run_command(database_url, "db", "reencrypt", code=1, **keys)
        assert "No configured key decrypts the grant of ada for lost" in output
        assert await can_read(database, Cipher(LOST), "lost")  # nothing is destroyed
        assert await db.fetchval("SELECT count(*) FROM audit_log WHERE action = 'secrets.reencrypt'") == 2
    finally:
        await database.close()


def test_lines_of_the_key_file_are_the_current_and_older_secrets(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text(f"{NEW}\n{OLD}\n")
    (tmp_path / KEY_FILE).chmod(0o600)
    settings = load_settings(_env_file=None, gateway_data_dir=tmp_path, gateway_encryption_old_keys="older")
    assert load_encryption_secrets(settings) == [NEW, OLD, "older"]
