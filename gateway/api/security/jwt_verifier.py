"""Verification of JSON web tokens.

A shared secret signs them, or a key that an identity provider publishes.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import jwt
from pydantic import SecretStr

from gateway.common.concurrency import SupervisedTask
from gateway.common.logging import get_logger
from gateway.config import Settings
from gateway.domain.caller_token import JWT_KEY, CallerToken
from gateway.domain.errors import GatewayError, NotAuthenticated
from gateway.domain.messages import Principal, UserRole
from gateway.domain.toolsets import is_toolset_name
from gateway.settings.values import is_web_address

log = get_logger(__name__)

_MAX_DOCUMENT_BYTES = 1024 * 1024
_MAX_USER_LENGTH = 200
_MAX_TOKEN_LENGTH = 16 * 1024
_INVALID_DOCUMENT_ERRORS = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""Errors that PyJWT raises for a document that is not a JWKS."""
_ROLES: tuple[UserRole, ...] = ("admin", "user", "viewer")


class JwksUnavailable(GatewayError):
    """The keys to verify a token with cannot be fetched now."""

    code = "identity_provider_unavailable"
    status = 503
    default_message = "The identity provider's keys cannot be fetched. Try again shortly."


class JwtVerifier:
    """Determines the principal of a token.

    The settings name the accepted algorithms, not the token's header.
    """

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        self._jwks = {issuer: JwksCache(url, issuer=issuer) for issuer, url in settings.jwks_urls.items()}
        self._algorithms = list(settings.jwt_algorithms) or (["RS256"] if self._jwks else ["HS256"])
        self._issuers = settings.jwt_issuer
        self._audience = _AudienceCheck(settings)
        self._leeway = settings.jwt_leeway_seconds
        self._role_claim = settings.jwt_role_claim
        self._scope_claim = settings.jwt_scope_claim

    async def verify_token(self, token: str) -> Principal:
        """Verify a token and return its principal.

        Raises:
            NotAuthenticated: its signature, issuer, audience, expiry or `sub` claim is not valid.
            JwksUnavailable: the keys to verify it with cannot be fetched.
        """
        if len(token) > _MAX_TOKEN_LENGTH:
            raise NotAuthenticated("This token is too long.")
        try:
            issuer = self._find_issuer(token)
            claims: Mapping[str, object] = jwt.decode(
                token,
                await self._get_signing_key(token, issuer),
                algorithms=self._algorithms,
                issuer=issuer,
                leeway=self._leeway,
                options={"require": ["exp", "iss", "aud", "sub"], "verify_aud": False},
            )
            toolset = self._audience.find_toolset(claims["aud"])
        except jwt.PyJWTError as error:
            log.info("token_rejected", reason=type(error).__name__)
            raise NotAuthenticated("This token is not valid.") from None
        subject = str(claims["sub"])
        user = self._name_user(issuer, subject)
        if not subject or subject != subject.strip() or len(user) > _MAX_USER_LENGTH or not subject.isprintable():
            raise NotAuthenticated("The token has no valid `sub` claim.")
        return Principal(
            user=user,
            role=self._parse_role(claims),
            key=JWT_KEY,
            scopes=self._parse_scopes(claims),
            token=CallerToken(SecretStr(token), float(str(claims["exp"])), issuer, is_main=issuer == self._issuers[0]),
            toolset=toolset,
        )

    def _find_issuer(self, token: str) -> str:
        """Return the issuer whose keys must verify a token."""
        if len(self._issuers) == 1:
            return self._issuers[0]
        claimed = jwt.decode(token, options={"verify_signature": False}).get("iss")
        if claimed not in self._issuers:  # a tuple, so that a claim of any type can be compared
            raise jwt.InvalidIssuerError("unknown issuer")
        return cast(str, claimed)

    def _name_user(self, issuer: str, subject: str) -> str:
        """Return the user of a subject.

        Subjects of different issuers are different users. Those of the first issuer have no prefix.

        Raises:
            NotAuthenticated: the first issuer's subject has the form of another issuer's user.
        """
        if issuer != self._issuers[0]:
            return f"{issuer}#{subject}"
        if subject.partition("#")[0] in self._issuers[1:]:
            raise NotAuthenticated("The token has no valid `sub` claim.")
        return subject

    async def _get_signing_key(self, token: str, issuer: str) -> "str | jwt.PyJWK":
        if self._jwks:
            return await self._jwks[issuer].get_key(jwt.get_unverified_header(token).get("kid"))
        assert self._secret is not None
        return self._secret

    def _parse_role(self, claims: Mapping[str, object]) -> UserRole:
        """Return the highest role in the claim.

        The role is `user` without the claim, `viewer` if the claim has no known role.
        """
        claim = claims.get(self._role_claim)
        if claim is None:
            return "user"
        names = _split_claim(claim)
        for role in _ROLES:
            if role in names:
                return role
        return "viewer"

    def _parse_scopes(self, claims: Mapping[str, object]) -> tuple[str, ...] | None:
        if self._scope_claim is None:
            return None
        return tuple(_split_claim(claims.get(self._scope_claim, "")))


def _split_claim(claim: object) -> list[str]:
    """Split a claim into its values.

    A claim is a list, or a text with blanks between values.
    """
    return [str(word) for word in cast(list[object], claim)] if isinstance(claim, list) else str(claim).split()


class _AudienceCheck:
    """Compares audiences of tokens with the gateway's.

    Where the audience is the address of `/mcp`, the address of a toolset below it is one too, for that toolset alone.
    """

    def __init__(self, settings: Settings) -> None:
        audience = settings.jwt_audience or ""
        self._ignores_slash = is_web_address(audience)
        self._audience = audience.removesuffix("/") if self._ignores_slash else audience
        self._has_toolsets = self._audience == f"{settings.public_url}/mcp"

    def find_toolset(self, claim: object) -> str | None:
        """Return the toolset that a token is bound to.

        None: it is for all of the gateway.

        Raises:
            InvalidAudienceError: the token is for others.
        """
        values = cast(list[object], claim) if isinstance(claim, list) else [claim]
        names = [
            value.removesuffix("/") if self._ignores_slash else value for value in values if isinstance(value, str)
        ]
        if self._audience in names:
            return None
        for name in names:
            parent, _, toolset = name.rpartition("/")
            if self._has_toolsets and parent == self._audience and is_toolset_name(toolset):
                return toolset
        raise jwt.InvalidAudienceError("other audience")


class JwksCache:
    """The keys of a JWKS document.

    Without a `url`, the issuer's metadata has it (OpenID Connect Discovery, RFC 8414).

    They are fetched again after `refresh_seconds`, or when a token names an unknown key. Tokens with unknown keys cause
    at most one fetch in `min_interval` seconds. All requests wait for the same fetch, at most `timeout_seconds`; a
    request whose key is cached waits at most `stale_wait_seconds`.
    """

    def __init__(
        self,
        url: str | None,
        *,
        issuer: str = "",
        min_interval: float = 5.0,
        refresh_seconds: float = 300.0,
        timeout_seconds: float = 5.0,
        stale_wait_seconds: float = 1.0,
    ) -> None:
        self._url = url
        self._issuer = issuer
        self._min_interval = min_interval
        self._refresh_seconds = refresh_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._stale_wait_seconds = stale_wait_seconds
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = self._attempted_at = float("-inf")
        self._fetch = SupervisedTask("jwks fetch", self._fetch_keys, restart=False)

    async def get_key(self, kid: str | None) -> jwt.PyJWK:
        """Return the key with this id.

        Raises:
            NotAuthenticated: there is no such key.
            JwksUnavailable: the document could not be fetched yet.
        """
        key = self._find_cached_key(kid)
        if key is None or self._get_age() >= self._refresh_seconds:
            await self._refresh_keys(self._stale_wait_seconds if key is not None else None)
        if (key := self._find_cached_key(kid)) is not None:
            return key
        if not self._keys:
            raise JwksUnavailable
        raise NotAuthenticated("The token is signed with an unknown key.")

    def _find_cached_key(self, kid: str | None) -> jwt.PyJWK | None:
        """Return the cached key.

        A token without a key id gets the only key.
        """
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _get_age(self) -> float:
        return time.monotonic() - self._fetched_at

    async def _refresh_keys(self, timeout: float | None) -> None:
        """Wait for a fetch, at most `timeout` seconds.

        Starts a fetch, unless the last one was a moment ago.
        """
        if not self._fetch.is_running:
            if time.monotonic() - self._attempted_at < self._min_interval:
                return
            self._fetch.start()
        await self._fetch.wait(timeout)

    async def _fetch_keys(self) -> None:
        """Replace the keys.

        A document that cannot be fetched or read leaves them unchanged.
        """
        try:
            async with aiohttp.ClientSession(timeout=self._timeout) as session, asyncio.timeout(self._timeout.total):
                url = self._url or await self._discover_url(session)
                document = jwt.PyJWKSet.from_json((await _get_document(session, url)).decode())
        except (aiohttp.ClientError, TimeoutError, jwt.PyJWTError, *_INVALID_DOCUMENT_ERRORS) as error:
            log.warning("jwks_not_fetched", error=type(error).__name__)
        else:
            self._keys = {key.key_id: key for key in document.keys}
            self._fetched_at = time.monotonic()
        finally:
            self._attempted_at = time.monotonic()

    async def _discover_url(self, session: aiohttp.ClientSession) -> str:
        """Return the address of the keys in the issuer's metadata.

        Raises:
            ValueError: the metadata is another issuer's, or has no address to fetch keys from.
            aiohttp.ClientError: there is no metadata.
        """
        try:
            content = await _get_document(session, f"{self._issuer.removesuffix('/')}/.well-known/openid-configuration")
        except aiohttp.ClientResponseError:  # no OpenID provider: RFC 8414 alone
            issuer = urlsplit(self._issuer)
            path = f"/.well-known/oauth-authorization-server{issuer.path.removesuffix('/')}"
            content = await _get_document(session, issuer._replace(path=path).geturl())
        metadata = json.loads(content)
        url = metadata["jwks_uri"]
        if metadata["issuer"] != self._issuer or not is_web_address(url):
            raise ValueError("metadata of another issuer")
        if self._issuer.startswith("https://") and not url.startswith("https://"):
            raise ValueError("keys without TLS")
        return url


async def _get_document(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url) as response:
        response.raise_for_status()
        return await _read_document(response.content)


async def _read_document(content: aiohttp.StreamReader) -> bytes:
    """Read the response's body.

    Raises:
        ValueError: it is too long.
    """
    document = bytearray()
    async for chunk in content.iter_any():
        document += chunk
        if len(document) > _MAX_DOCUMENT_BYTES:
            raise ValueError
    return bytes(document)
