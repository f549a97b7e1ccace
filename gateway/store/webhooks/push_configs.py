"""Receivers of the push notifications of tasks."""

from uuid import UUID

import msgspec
from sqlmodel import text

from gateway.domain.errors import InvalidRequest, NotFound
from gateway.domain.messages import Principal
from gateway.ports.webhooks import PushConfig
from gateway.store.database import Database
from gateway.store.encryption import Cipher

MAX_CONFIGS = 16
"""Receivers of one task."""
# The lock keeps the turn from ending between the new row and the look at its status.
_MARK_TURN = text(
    "UPDATE turns SET options = options || '{\"push\": true}' WHERE id = :turn_id AND owner = :owner"
    " RETURNING status, (SELECT count(*) FROM push_configs WHERE turn_id = :turn_id AND id <> :id)"
)
_ADD = text("""
INSERT INTO push_configs (turn_id, id, owner, url, sealed) VALUES (:turn_id, :id, :owner, :url, :sealed)
ON CONFLICT (turn_id, id) DO UPDATE SET url = excluded.url, sealed = excluded.sealed
""")
_QUEUE_STATE = text("SELECT queue_push(turns, turns.status, :id) FROM turns WHERE id = :turn_id")
_LIST = "SELECT sealed FROM push_configs WHERE turn_id = :turn_id ORDER BY created_at, id"
_DELETE = "DELETE FROM push_configs WHERE turn_id = :turn_id AND id = :id RETURNING id"
_decode = msgspec.json.Decoder(PushConfig).decode


def open_config(cipher: Cipher, sealed: bytes) -> PushConfig | None:
    """Decrypt a config.

    Return None if no configured key does.
    """
    plain = cipher.decrypt(sealed)
    return None if plain is None else _decode(plain)


class PushConfigStore:
    """Stores configs; callers check that the turns are the client's."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    async def add_config(self, turn_id: UUID, principal: Principal, config: PushConfig) -> None:
        """Add a config, or replace the one with its id.

        A task that has ended or waits is told of at once.

        Raises:
            InvalidRequest: the task has too many configs.
            NotFound: the turn was deleted.
        """
        key = {"turn_id": turn_id, "id": config.id}
        row = {"owner": principal.user, "url": config.url, "sealed": self._cipher.encrypt(msgspec.json.encode(config))}
        async with self._database.session() as session:
            connection = await session.connection()
            found = (await connection.execute(_MARK_TURN, {**key, "owner": principal.user})).first()
            if found is None:
                raise NotFound(f"There is no turn {str(turn_id)!r}.")
            status, others = found
            if others >= MAX_CONFIGS:
                raise InvalidRequest(f"A task has at most {MAX_CONFIGS} push notification configs.")
            await connection.execute(_ADD, {**key, **row})
            if status != "running":
                await connection.execute(_QUEUE_STATE, key)

    async def list_for_turn(self, turn_id: UUID) -> list[PushConfig]:
        """List the configs of a turn, oldest first.

        Configs that no configured key decrypts are left out.
        """
        rows = await self._database.fetch_rows(_LIST, turn_id=turn_id)
        return [config for row in rows if (config := open_config(self._cipher, row[0])) is not None]

    async def delete_config(self, turn_id: UUID, config_id: str) -> None:
        """Delete a config and its messages."""
        await self._database.fetch_rows(_DELETE, turn_id=turn_id, id=config_id)
