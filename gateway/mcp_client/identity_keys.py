"""The keys that sign identity tokens.

A server that verifies by the published keys cannot sign.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.common.logging import get_logger
from gateway.domain.messages import JsonObject
from gateway_runtime.private_files import make_data_directory, open_private

log = get_logger(__name__)

ALGORITHM = "ES256"
JWKS_FILE = "identity-jwks.json"
"""File of the data directory with the public keys.

A tool server on the same machine reads it.
"""
_PURPOSE = b"agent-gateway identity tokens"
_CURVE_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_DERIVED_BYTES = 48
"""Bytes of the derived number.

16 more than the order has, so that the remainder is not biased (FIPS 186-5, A.2.1).
"""


class IdentityKeys:
    """Key pairs, derived from the secrets that encrypt stored data.

    Gateways that share those share these, too. The first secret's key signs; the keys of all are published, so that
    tokens stay valid while secrets are replaced.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._private_keys = [_derive_key(secret) for secret in secrets]
        self._jwks = [_describe_public_key(key.public_key()) for key in self._private_keys]

    def sign(self, claims: JsonObject) -> str:
        """Sign the claims of a token."""
        import jwt  # imported here, as it takes 2 MB that only signers need

        return jwt.encode(claims, self._private_keys[0], ALGORITHM, headers={"kid": self._jwks[0]["kid"]})

    def get_jwks(self) -> JsonObject:
        """Return the public keys as a JWKS document (RFC 7517)."""
        return {"keys": self._jwks}

    def write_jwks_file(self, directory: Path) -> None:
        """Write the public keys for a tool server beside the gateway.

        Without a writable directory, tool servers need the URL of the keys.
        """
        draft = directory / f"{JWKS_FILE}.{os.getpid()}"
        try:
            make_data_directory(directory)
            with open(draft, "w", opener=open_private) as output:  # who writes to it could mint tokens
                output.write(json.dumps(self.get_jwks()))
            draft.replace(directory / JWKS_FILE)
        except OSError as error:
            log.info("identity_keys_not_written", error=type(error).__name__)


def _derive_key(secret: str) -> ec.EllipticCurvePrivateKey:
    derived = HKDF(hashes.SHA256(), _DERIVED_BYTES, salt=None, info=_PURPOSE).derive(secret.encode())
    return ec.derive_private_key(1 + int.from_bytes(derived) % (_CURVE_ORDER - 1), ec.SECP256R1())


def _describe_public_key(key: ec.EllipticCurvePublicKey) -> JsonObject:
    """Build the JWK. Its id is its thumbprint (RFC 7638)."""
    numbers = key.public_numbers()
    members = {"crv": "P-256", "kty": "EC", "x": _encode(numbers.x), "y": _encode(numbers.y)}
    thumbprint = hashlib.sha256(json.dumps(members, separators=(",", ":")).encode()).digest()
    return {**members, "kid": _encode(int.from_bytes(thumbprint)), "use": "sig", "alg": ALGORITHM}


def _encode(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32)).rstrip(b"=").decode()
