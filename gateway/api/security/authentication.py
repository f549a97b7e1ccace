"""Who is calling: the static key, a stored key, or a JSON web token."""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from starlette.datastructures import Headers

from gateway.api.security.revocation import LastingRequests
from gateway.common.logging import get_logger
from gateway.config import ConfigError, Settings, is_loopback
from gateway.domain.errors import NotAuthenticated, StorageUnavailable
from gateway.domain.messages import LOCAL, BusMessage, Principal
from gateway.store.api_keys import KeyStore, principal_of
from gateway.store.audit import AuditStore
from gateway.store.models import ApiKey

if TYPE_CHECKING:
    from gateway.api.security.jwt_verifier import Verifier

log = get_logger(__name__)

PRINCIPAL = "gateway.principal"
"""Where in a request's scope stands who is calling, once that is known."""
STATIC = "API_KEY"
_KEPT_SECONDS = 5.0
_LOOK_SECONDS = 1.0
_NOTE_SECONDS = 60.0
_MOST_KEPT = 10_000
_REFUSALS_PER_SECOND = 20


class Authenticator:
    """Says who a request's credential is of. A stored key costs a query at most every five seconds, and none on the
    way of most requests; a change of the keys is heard at once."""

    def __init__(self, settings: Settings, keys: KeyStore, audit: AuditStore) -> None:
        self._static = _sha256(settings.api_key.get_secret_value()) if settings.api_key else None
        self._verifier = _verifier(settings)
        self._closed = self._static is not None or self._verifier is not None or not may_be_open(settings)
        self._keys = keys
        self._kept = _KeptKeys(keys)
        self.lasting = LastingRequests(keys)
        self._refusals = _Refusals(audit)
        self._noted: dict[UUID, float] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        """Wait for what is still being noted."""
        await self.lasting.stop()
        if self._background:
            await asyncio.wait(self._background, timeout=2)

    def heard(self, message: BusMessage) -> None:
        """The stored keys have changed."""
        if message.kind == "keys":
            self._kept.forget()
            self.lasting.keys_changed()

    async def authenticate(self, headers: Headers, source: str) -> Principal:
        """The principal of a request. While nobody has asked for a credential everyone is `local`, and one that comes
        is ignored. `source` is where the request comes from.

        Raises:
            NotAuthenticated: a credential is asked for, and none or a wrong one came.
            StorageUnavailable: nobody can tell now.
        """
        if not self._closed and not await self._kept.any():
            return LOCAL
        given = headers.get("x-api-key") or _bearer(headers)
        if not given:
            raise NotAuthenticated
        try:
            return await self._principal(given)
        except NotAuthenticated as refused:
            self._note_refusal(source, given, refused)
            raise

    async def _principal(self, given: str) -> Principal:
        """A key that is unknown takes the way of one that is known: hashed, compared, looked for."""
        hashed = _sha256(given)
        if self._static is not None and hmac.compare_digest(hashed, self._static):
            return msgspec.structs.replace(LOCAL, key=STATIC)
        if self._verifier is not None and given.count(".") == 2:
            return await self._verifier.principal(given)
        key = await self._kept.find(hashed.hex())
        if key is None or not hmac.compare_digest(key.hash, hashed.hex()):
            raise NotAuthenticated("This API key is not valid.")
        if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
            raise NotAuthenticated("This API key is not valid any more.")
        self._note_use(key)
        return principal_of(key)

    def _note_use(self, key: ApiKey) -> None:
        now = time.monotonic()
        if now - self._noted.get(key.id, float("-inf")) >= _NOTE_SECONDS:
            self._noted[key.id] = now
            self._later(self._keys.used(key.id))

    def _note_refusal(self, source: str, given: str, refused: NotAuthenticated) -> None:
        if self._refusals.due(source):
            self._later(self._refusals.write(source, given, refused.message))

    def _later(self, noting: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_unless_away(noting))
        self._background.add(task)
        task.add_done_callback(self._background.discard)


class _KeptKeys:
    """Stored keys, for a few seconds each."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys
        self._found: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()
        self._any = False
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._generation = 0

    def forget(self) -> None:
        self._generation += 1
        self._found.clear()
        self._looked_at = float("-inf")

    async def any(self) -> bool:
        """Whether there is a stored key; once there is, for good."""
        if self._any or time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return self._any
        async with self._looking:
            if not self._any and time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                try:
                    self._any = await self._keys.any()
                except StorageUnavailable:
                    if self._looked_at == float("-inf"):
                        raise
                self._looked_at = time.monotonic()
        return self._any

    async def find(self, hash_: str) -> ApiKey | None:
        at, key = self._found.get(hash_, (float("-inf"), None))
        if time.monotonic() - at < _KEPT_SECONDS:
            return key
        generation = self._generation
        key = await self._keys.find(hash_)
        if generation == self._generation:
            self._found[hash_] = (time.monotonic(), key)
            self._found.move_to_end(hash_)
            if len(self._found) > _MOST_KEPT:
                self._found.popitem(last=False)
        return key


class _Refusals:
    """Refused logins for the audit log: at most one row a second and source, and twenty a second of all sources."""

    def __init__(self, audit: AuditStore) -> None:
        self._audit = audit
        self._second = 0
        self._sources: dict[str, None] = {}
        self._left_out = 0

    def due(self, source: str) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._sources = second, {}
        if source in self._sources or len(self._sources) >= _REFUSALS_PER_SECOND:
            self._left_out += 1
            return False
        self._sources[source] = None
        return True

    async def write(self, source: str, given: str, reason: str) -> None:
        """Of the credential only what a stored key shows anyway."""
        left_out, self._left_out = self._left_out, 0
        start = given[:12] if given.startswith("agw_") else None
        detail = {"source": source, "reason": reason, "key": start, "left_out_before": left_out}
        await self._audit.write("unknown", "login.refused", f"source {source}", detail)


def takes_tokens(settings: Settings) -> bool:
    return settings.jwt_secret is not None or settings.jwt_jwks_url is not None


def _verifier(settings: Settings) -> "Verifier | None":
    if not takes_tokens(settings):
        return None
    from gateway.api.security.jwt_verifier import Verifier

    return Verifier(settings)


def may_be_open(settings: Settings) -> bool:
    """Whether the gateway may serve people of whom it asks no credential."""
    return is_loopback(settings.gateway_host) or settings.gateway_allow_anonymous


def refuse_open_gateway(settings: Settings, *, stored_keys: bool) -> None:
    """Anyone who can reach the port could use the model's key and the tools.

    Raises:
        ConfigError: the gateway would listen beyond this machine without asking for a credential.
    """
    if settings.api_key is None and not takes_tokens(settings) and not stored_keys and not may_be_open(settings):
        raise ConfigError(
            f"GATEWAY_HOST: {settings.gateway_host} can be reached from other machines: set API_KEY or JWT_SECRET, "
            "make a key with `agent-gateway keys create`, or set GATEWAY_ALLOW_ANONYMOUS=true if that is what you want"
        )


def _bearer(headers: Headers) -> str:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def _unless_away(noting: Coroutine[Any, Any, None]) -> None:
    try:
        await noting
    except StorageUnavailable:
        log.warning("note_lost")
