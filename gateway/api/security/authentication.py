"""Authentication of requests.

The credential is the static key, a stored key, or a JSON web token.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
from cachetools import TTLCache
from starlette.datastructures import Headers

from gateway.api.security.revocation import OpenRequestRegistry
from gateway.common.concurrency import TaskSet
from gateway.common.logging import get_logger
from gateway.config import ConfigError, Settings
from gateway.domain.bus import BusMessage
from gateway.domain.errors import NotAuthenticated, StorageUnavailable
from gateway.domain.messages import LOCAL_PRINCIPAL, Principal
from gateway.settings.values import is_loopback
from gateway.store.api_keys import KeyStore, principal_from_key
from gateway.store.audit import AuditStore
from gateway.store.models import ApiKey
from gateway_runtime.settings.hosts import UNKNOWN_HOST, is_host_allowed

if TYPE_CHECKING:
    from gateway.api.security.jwt_verifier import JwtVerifier

log = get_logger(__name__)

PRINCIPAL_SCOPE_KEY = "gateway.principal"
"""Scope key of the caller's `Principal`.

Authenticated requests have it in their ASGI scope.
"""
STATIC_KEY_NAME = "API_KEY"
_STATIC_KEY_PRINCIPAL = msgspec.structs.replace(LOCAL_PRINCIPAL, key=STATIC_KEY_NAME)
_STOP_SECONDS = 2.0
_IS_OPEN_SECONDS = 1.0
_EXISTENCE_CACHE_SECONDS = 1.0
_USE_RECORD_INTERVAL_SECONDS = 60.0
_MAX_CACHED_KEYS = 10_000
_MAX_AUDITED_FAILURES_PER_SECOND = 20
_MAX_AUDITED_FAILURES = 60
_AUDITED_FAILURE_SECONDS = 300.0


class Authenticator:
    """Determines the principal of a request from its credential.

    A stored key is looked up once in `key_cache_seconds`. A change of the keys takes effect at once; an expired key's
    open requests end within `key_poll_seconds`.
    """

    def __init__(
        self,
        settings: Settings,
        keys: KeyStore,
        audit: AuditStore,
        *,
        key_cache_seconds: float = 5.0,
        key_poll_seconds: float = 15.0,
    ) -> None:
        self._static_key_hash = _hash_secret(settings.api_key.get_secret_value()) if settings.api_key else None
        self._jwt_verifier = _create_jwt_verifier(settings)
        self._requires_credential = (
            self._static_key_hash is not None or self._jwt_verifier is not None or not allows_anonymous(settings)
        )
        self._keys = keys
        self._key_cache = ApiKeyCache(keys, key_cache_seconds)
        self.open_requests = OpenRequestRegistry(keys, poll_seconds=key_poll_seconds)
        self._failed_logins = FailedLoginAudit(audit)
        self._use_recorded_at: dict[UUID, float] = {}
        self._background = TaskSet("authentication records")

    async def stop(self) -> None:
        """Stop watching keys.

        Waits up to two seconds for records that are being written.
        """
        await self.open_requests.stop()
        await self._background.stop(_STOP_SECONDS)

    def on_keys_changed(self, _message: BusMessage) -> None:
        """Forget cached keys, since a worker has changed the stored ones."""
        self._key_cache.invalidate_keys()
        self.open_requests.on_keys_changed()

    async def authenticate_request(self, headers: Headers, source: str) -> Principal:
        """Return the principal of a request.

        `source` is the network address that the request comes from. While no credential is configured, each caller is
        the user "local", and a credential in the request is ignored.

        Raises:
            NotAuthenticated: the request has no credential, or an invalid one.
            StorageUnavailable: the stored keys cannot be read.
        """
        if not await self.requires_credential():
            return LOCAL_PRINCIPAL
        credential = _get_credential(headers)
        if not credential:
            raise NotAuthenticated
        try:
            return await self._resolve_credential(credential)
        except NotAuthenticated as error:
            self._audit_failed_login(source, credential, error)
            raise

    async def is_open(self) -> bool:
        """Return whether no credential is required.

        If the database does not answer in a second, return the last known state; False if there is none.
        """
        if self._requires_credential:
            return False
        with suppress(StorageUnavailable, TimeoutError):
            async with asyncio.timeout(_IS_OPEN_SECONDS):
                return not await self._key_cache.has_stored_keys()
        return self._key_cache.is_known_empty

    async def requires_credential(self) -> bool:
        """Return whether callers need a credential.

        Raises:
            StorageUnavailable: the stored keys cannot be read.
        """
        return self._requires_credential or await self._key_cache.has_stored_keys()

    async def _resolve_credential(self, credential: str) -> Principal:
        """Return the principal of a credential.

        Unknown keys are hashed and looked up too, so timing does not reveal which keys exist.
        """
        hashed = _hash_secret(credential)
        if self._static_key_hash is not None and hmac.compare_digest(hashed, self._static_key_hash):
            return _STATIC_KEY_PRINCIPAL
        if self._jwt_verifier is not None and credential.count(".") == 2:
            return await self._jwt_verifier.verify_token(credential)
        key = await self._key_cache.find_by_hash(hashed.hex())
        if key is None or not hmac.compare_digest(key.hash, hashed.hex()):
            raise NotAuthenticated("This API key is not valid.")
        if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
            raise NotAuthenticated("This API key has been revoked or has expired.")
        self._record_key_use(key)
        return principal_from_key(key)

    def _record_key_use(self, key: ApiKey) -> None:
        now = time.monotonic()
        if now - self._use_recorded_at.get(key.id, float("-inf")) >= _USE_RECORD_INTERVAL_SECONDS:
            self._use_recorded_at[key.id] = now
            self._background.spawn(_ignore_unavailable_storage(self._keys.record_use(key.id)))

    def _audit_failed_login(self, source: str, credential: str, error: NotAuthenticated) -> None:
        if self._failed_logins.should_record(source):
            record = self._failed_logins.record_failure(source, credential, error.message)
            self._background.spawn(_ignore_unavailable_storage(record))


class ApiKeyCache:
    """Cache of stored keys by hash, each for `cache_seconds`.

    It also caches hashes without a key.
    """

    def __init__(self, keys: KeyStore, cache_seconds: float) -> None:
        self._keys = keys
        self._by_hash: TTLCache[str, ApiKey | None] = TTLCache(_MAX_CACHED_KEYS, cache_seconds)
        self._has_keys = False
        self._counted_at = float("-inf")
        self._count_lock = asyncio.Lock()
        self._generation = 0

    def invalidate_keys(self) -> None:
        """Forget everything, including answers of queries that are under way."""
        self._generation += 1
        self._by_hash.clear()
        self._counted_at = float("-inf")

    @property
    def is_known_empty(self) -> bool:
        """Whether the last count, still valid, found no key."""
        return not self._has_keys and self._counted_at != float("-inf")

    async def has_stored_keys(self) -> bool:
        """Return whether there is a stored key.

        After the first True the result does not change.

        Raises:
            StorageUnavailable: the keys could not be read yet.
        """
        if self._has_keys or time.monotonic() - self._counted_at < _EXISTENCE_CACHE_SECONDS:
            return self._has_keys
        async with self._count_lock:
            if not self._has_keys and time.monotonic() - self._counted_at >= _EXISTENCE_CACHE_SECONDS:
                generation = self._generation
                try:
                    self._has_keys = await self._keys.has_keys()
                except StorageUnavailable:
                    if self._counted_at == float("-inf"):
                        raise
                if generation == self._generation:  # else the count may not have seen a key that is new
                    self._counted_at = time.monotonic()
        return self._has_keys

    async def find_by_hash(self, key_hash: str) -> ApiKey | None:
        """Return the stored key with this hash, if there is one.

        Raises:
            StorageUnavailable: the keys cannot be read.
        """
        try:
            return self._by_hash[key_hash]
        except KeyError:
            pass
        generation = self._generation
        key = await self._keys.find_by_hash(key_hash)
        if generation == self._generation:
            self._by_hash[key_hash] = key
        return key


class FailedLoginAudit:
    """Records failed logins in the audit log.

    It writes one row per second and source, and not so many in all that they could fill the log: 60 at first, then one
    more every five minutes.
    """

    def __init__(self, audit: AuditStore, *, now: Callable[[], float] = time.monotonic) -> None:
        self._audit = audit
        self._now = now
        self._second: int = 0
        self._rows_left: float = _MAX_AUDITED_FAILURES
        self._counted_at = now()
        self._sources: set[str] = set()
        self._omitted = 0

    def should_record(self, source: str) -> bool:
        """Return whether this failure gets a row.

        The next row has the number of failures without one.
        """
        now = self._now()
        gained = (now - self._counted_at) / _AUDITED_FAILURE_SECONDS
        self._rows_left = min(_MAX_AUDITED_FAILURES, self._rows_left + gained)
        self._counted_at = now
        second = int(now)
        if second != self._second:
            self._second, self._sources = second, set()
        is_full = len(self._sources) >= _MAX_AUDITED_FAILURES_PER_SECOND or self._rows_left < 1
        if source in self._sources or is_full:
            self._omitted += 1
            return False
        self._sources.add(source)
        self._rows_left -= 1
        return True

    async def record_failure(self, source: str, credential: str, reason: str) -> None:
        """Write a row.

        It contains no part of the credential except the public prefix of a stored key.
        """
        omitted, self._omitted = self._omitted, 0
        prefix = credential[:12] if credential.startswith("agw_") else None
        detail = {"source": source, "reason": reason, "key": prefix, "left_out_before": omitted}
        await self._audit.write_entry("unknown", "login.refused", f"source {source}", detail)


def accepts_jwt(settings: Settings) -> bool:
    return settings.jwt_secret is not None or bool(settings.jwks_urls)


def _create_jwt_verifier(settings: Settings) -> "JwtVerifier | None":
    if not accepts_jwt(settings):
        return None
    from gateway.api.security.jwt_verifier import JwtVerifier

    return JwtVerifier(settings)


def allows_anonymous(settings: Settings) -> bool:
    """Return whether the gateway may serve callers without a credential."""
    is_published = settings.bind_host is not None and not is_loopback(settings.bind_host)
    return not is_published and (is_loopback(settings.gateway_host) or settings.gateway_allow_anonymous)


def reject_open_gateway(settings: Settings, *, stored_keys: bool) -> None:
    """Reject a configuration that lets anyone in.

    Without a credential, every caller that reaches the port could use the model's key and the tools: a program on the
    network, or a page of any origin in a browser on this machine.

    Raises:
        ConfigError: callers beyond this machine, or pages of any origin, would need no credential.
    """
    if settings.api_key is not None or accepts_jwt(settings) or stored_keys:
        return
    if settings.bind_host is not None and not is_loopback(settings.bind_host):
        raise ConfigError(
            f"GATEWAY_BIND: {settings.gateway_bind} can be reached from other machines: set API_KEY or JWT_SECRET, or "
            "make a key with `agent-gateway keys create`. GATEWAY_ALLOW_ANONYMOUS does not apply there"
        )
    if not allows_anonymous(settings):
        raise ConfigError(
            f"GATEWAY_HOST: {settings.gateway_host} can be reached from other machines: set API_KEY or JWT_SECRET, "
            "make a key with `agent-gateway keys create`, or set GATEWAY_ALLOW_ANONYMOUS=true if that is what you want"
        )
    if open_origins := {"*", "null"} & set(settings.cors_origins):
        raise ConfigError(
            f"CORS_ORIGINS: {open_origins.pop()} lets every web page use a gateway that requires no credential: list "
            "the origins, or set API_KEY or JWT_SECRET, or make a key with `agent-gateway keys create`"
        )
    if settings.trusted_hosts and is_host_allowed(UNKNOWN_HOST, settings.trusted_hosts):
        raise ConfigError(
            "TRUSTED_HOSTS: every name leads to a gateway that requires no credential, also one that a web page chose "
            "(DNS rebinding): list the names, or set API_KEY or JWT_SECRET, or make a key with `agent-gateway keys "
            "create`"
        )


def has_credential(headers: Headers) -> bool:
    return bool(_get_credential(headers))


def _get_credential(headers: Headers) -> str:
    return headers.get("x-api-key") or _parse_bearer_token(headers)


def _parse_bearer_token(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _hash_secret(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def _ignore_unavailable_storage(record: Coroutine[object, object, None]) -> None:
    try:
        await record
    except StorageUnavailable:
        log.warning("authentication_record_lost")
