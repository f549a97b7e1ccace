"""Encrypts stored secrets again, with the current key."""

import msgspec
from sqlmodel import col, select

from gateway.domain.messages import JsonObject
from gateway.store.audit import make_audit_entry
from gateway.store.database import Database
from gateway.store.encryption import Cipher
from gateway.store.mcp_servers import ENCRYPTED_FIELD
from gateway.store.models import McpServerRow, OAuthGrant, OAuthSignIn
from gateway.store.tables.webhooks import PushConfigRow


class ReencryptionResult(msgspec.Struct):
    """Number of encrypted secrets, and names of unreadable ones.

    No configured key decrypts the unreadable ones.
    """

    encrypted: int = 0
    unreadable: list[str] = msgspec.field(default_factory=list[str])


async def reencrypt_secrets(database: Database, cipher: Cipher, *, by: str) -> ReencryptionResult:
    """Encrypt grants, sign-ins in progress, server entries and push configs again.

    Workers may serve meanwhile: each row is locked while it changes.
    """
    result = ReencryptionResult()
    async with database.session(seconds=60.0) as session:
        for grant in (await session.exec(select(OAuthGrant).with_for_update())).all():
            name = f"grant of {grant.owner or 'all users'} for {grant.server}"
            grant.sealed = _rotate(cipher, grant.sealed, name, result)
            session.add(grant)
        waiting = select(OAuthSignIn).where(col(OAuthSignIn.callback).is_not(None)).with_for_update()
        for sign_in in (await session.exec(waiting)).all():
            assert sign_in.callback is not None
            sign_in.callback = _rotate(cipher, sign_in.callback, "sign-in in progress", result)
            session.add(sign_in)
        for server in (await session.exec(select(McpServerRow).with_for_update())).all():
            config: JsonObject | None = server.config
            if config is not None and ENCRYPTED_FIELD in config:
                sealed = _rotate(cipher, config[ENCRYPTED_FIELD].encode(), f"server {server.name}", result)
                server.config = config | {ENCRYPTED_FIELD: sealed.decode()}
                session.add(server)
        for push in (await session.exec(select(PushConfigRow).with_for_update())).all():
            push.sealed = _rotate(cipher, push.sealed, f"push notification config of turn {push.turn_id}", result)
            session.add(push)
        detail = {"encrypted": result.encrypted, "unreadable": len(result.unreadable)}
        session.add(make_audit_entry(by, "secrets.reencrypt", "secrets", detail))
    return result


def _rotate(cipher: Cipher, sealed: bytes, name: str, result: ReencryptionResult) -> bytes:
    plain = cipher.decrypt(sealed)
    if plain is None:
        result.unreadable.append(name)
        return sealed
    result.encrypted += 1
    return cipher.encrypt(plain)
