"""JSON web tokens: signed with a shared secret, or with keys that an identity provider publishes."""

import asyncio
import time
from typing import Any, cast

import aiohttp
import jwt

from gateway.common.logging import get_logger
from gateway.config import Settings
from gateway.domain.errors import GatewayError, NotAuthenticated
from gateway.domain.messages import Principal, UserRole

log = get_logger(__name__)

_REFRESH_SECONDS = 300.0
_FETCH_TIMEOUT = aiohttp.ClientTimeout(total=5)
_STALE_WAIT_SECONDS = 1.0
_MAX_DOCUMENT_BYTES = 1024 * 1024
_MAX_USER_LENGTH = 200
_MAX_TOKEN_LENGTH = 16 * 1024
_INVALID_DOCUMENT_ERRORS = (ValueError, TypeError, AttributeError, LookupError)
"""How PyJWT takes a document that is none."""
_ROLES: tuple[UserRole, ...] = ("admin", "user", "viewer")


class JwksUnavailable(GatewayError):
    """Nobody can tell now whether a token is good."""

    code = "identity_provider_unavailable"
    status = 503
    default_message = "The identity provider's keys cannot be fetched. Try again shortly."


class JwtVerifier:
    """Says whom a token speaks for. The algorithm is what the settings name, whatever the token's header says."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        self._jwks = JwksCache(settings.jwt_jwks_url) if settings.jwt_jwks_url else None
        self._algorithms = list(settings.jwt_algorithms) or (["RS256"] if self._jwks else ["HS256"])
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._leeway = settings.jwt_leeway_seconds
        self._role_claim = settings.jwt_role_claim
        self._scope_claim = settings.jwt_scope_claim

    async def verify_token(self, token: str) -> Principal:
        """Raises:
        NotAuthenticated: the token is not good: its signature, issuer, audience, expiry, or that it names nobody.
        JwksUnavailable: the keys to check it with cannot be fetched.
        """
        if len(token) > _MAX_TOKEN_LENGTH:
            raise NotAuthenticated("This token is too long.")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                await self._get_signing_key(token),
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            log.info("token_refused", reason=type(error).__name__)
            raise NotAuthenticated("This token is not valid.") from None
        user = str(claims["sub"])
        if not user or user != user.strip() or len(user) > _MAX_USER_LENGTH or not user.isprintable():
            raise NotAuthenticated("This token names nobody.")
        return Principal(user=user, role=self._parse_role(claims), key="jwt", scopes=self._parse_scopes(claims))

    async def _get_signing_key(self, token: str) -> Any:
        if self._jwks is None:
            return self._secret
        return await self._jwks.get_key(jwt.get_unverified_header(token).get("kid"))

    def _parse_role(self, claims: dict[str, Any]) -> UserRole:
        """The highest of the roles that the claim names: without the claim user, without a known one viewer."""
        told = claims.get(self._role_claim)
        if told is None:
            return "user"
        named = _split_claim(told)
        for role in _ROLES:
            if role in named:
                return role
        return "viewer"

    def _parse_scopes(self, claims: dict[str, Any]) -> tuple[str, ...] | None:
        if self._scope_claim is None:
            return None
        return tuple(_split_claim(claims.get(self._scope_claim, "")))


def _split_claim(claim: Any) -> list[str]:
    """A list, or words with blanks between them: both are usual."""
    return [str(word) for word in cast(list[Any], claim)] if isinstance(claim, list) else str(claim).split()


class JwksCache:
    """The keys of a JWKS document. Kept for five minutes, and asked for again when a token names one that is not there:
    so a rotation is noticed, and tokens of unknown keys cannot make us ask more than once in `pause` seconds.

    Whoever needs the document waits for the same answer; with a known key at hand, no longer than a second.
    """

    def __init__(self, url: str, *, min_interval: float = 5.0) -> None:
        self._url = url
        self._pause = min_interval
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._attempted_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def get_key(self, kid: str | None) -> jwt.PyJWK:
        """Raises:
        NotAuthenticated: there is no such key.
        JwksUnavailable: the document cannot be fetched, and no key of an earlier one will do.
        """
        found = self._find_cached_key(kid)
        if found is None or self._get_age() >= _REFRESH_SECONDS:
            await self._refresh_keys(_STALE_WAIT_SECONDS if found is not None else None)
        if (found := self._find_cached_key(kid)) is not None:
            return found
        if not self._keys:
            raise JwksUnavailable
        raise NotAuthenticated("This token is signed with a key that is not known.")

    def _find_cached_key(self, kid: str | None) -> jwt.PyJWK | None:
        """A token without a key id can only mean the one key there is."""
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _get_age(self) -> float:
        return time.monotonic() - self._fetched_at

    async def _refresh_keys(self, patience: float | None) -> None:
        """Wait for the document, which is on its way already or asked for now; not so soon after the last time."""
        if self._asking is None:
            if time.monotonic() - self._attempted_at < self._pause:
                return
            self._asking = asyncio.create_task(self._fetch_keys(), name="jwks")
        await asyncio.wait((self._asking,), timeout=patience)

    async def _fetch_keys(self) -> None:
        """What cannot be fetched or read leaves the keys as they are."""
        try:
            async with aiohttp.ClientSession(timeout=_FETCH_TIMEOUT) as session, session.get(self._url) as response:
                response.raise_for_status()
                document = jwt.PyJWKSet.from_json((await _read_document(response.content)).decode())
        except (aiohttp.ClientError, TimeoutError, jwt.PyJWTError, *_INVALID_DOCUMENT_ERRORS) as error:
            log.warning("jwks_not_fetched", error=type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in document.keys}
            self._fetched_at = time.monotonic()
        finally:
            self._attempted_at = time.monotonic()
            self._asking = None


async def _read_document(content: aiohttp.StreamReader) -> bytes:
    """Raises:
    ValueError: it is too long.
    """
    read = bytearray()
    async for chunk in content.iter_any():
        read += chunk
        if len(read) > _MAX_DOCUMENT_BYTES:
            raise ValueError
    return bytes(read)
