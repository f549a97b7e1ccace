"""Stored API keys of a gateway under test, by owner."""

from typing import Any

from gateway.domain.bus import BusKind, BusMessage
from gateway.domain.messages import UserRole
from gateway.store.api_keys import NewKey
from gateway.store.models import ApiKey
from tests.stack import Gateway, Reply


class Keyring:
    """Creates keys and calls the gateway with them."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.secrets: dict[str, str] = {}
        self.rows: dict[str, ApiKey] = {}

    async def create_key(self, owner: str, role: UserRole = "user", **options: Any) -> dict[str, str]:
        """Create a key and return the request headers with it."""
        row, secret = await self.gateway.state.keys.create_key(NewKey(owner, role=role, **options), by="test")
        self.gateway.state.auth.on_keys_changed(
            BusMessage(BusKind.KEYS_CHANGED, BusMessage.NO_TURN)
        )  # so that the test need not wait for the bus message
        self.rows[owner], self.secrets[owner] = row, secret
        return self.headers(owner)

    def headers(self, owner: str) -> dict[str, str]:
        return {"X-API-Key": self.secrets[owner]}

    async def get(self, owner: str, path: str) -> Reply:
        return await self.gateway.get(path, headers=self.headers(owner))

    async def post(self, owner: str, path: str, body: Any = None) -> Reply:
        return await self.gateway.post(path, body, headers=self.headers(owner))

    async def request_status(self, method: str, owner: str, path: str, body: Any = None) -> int:
        """Send a request and return the status of the response."""
        url = f"{self.gateway.base_url}{path}"
        async with self.gateway.session.request(method, url, json=body, headers=self.headers(owner)) as response:
            return response.status

    async def chat(self, owner: str, prompt: str, **body: Any) -> Reply:
        return await self.post(owner, "/api/v1/chat", {"messages": [{"role": "user", "content": prompt}], **body})
