"""The TLS context of an address whose certificate the system's authorities verify."""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path

_VERIFYING_MODES = ("verify-ca", "verify-full")
_VERSIONS = {"ssl_min_protocol_version": "minimum_version", "ssl_max_protocol_version": "maximum_version"}
_ALPN_PROTOCOL = "postgresql"


def build_system_tls(parameters: Mapping[str, str]) -> ssl.SSLContext | None:
    """Build a context that trusts the system's authorities.

    For `sslrootcert=system`, and for a verifying mode without a root certificate, where the driver would fail. None:
    the driver builds the context.

    Raises:
        OSError: a client certificate cannot be used.
    """
    mode, root = parameters.get("sslmode"), parameters.get("sslrootcert")
    if mode not in _VERIFYING_MODES or (root != "system" and _has_root_certificate(root)):
        return None
    context = ssl.create_default_context()
    context.check_hostname = mode == "verify-full"
    context.set_alpn_protocols([_ALPN_PROTOCOL])
    for name, attribute in _VERSIONS.items():
        if (version := parameters.get(name)) is not None:
            setattr(context, attribute, ssl.TLSVersion[version.replace(".", "_")])
    if (revoked := parameters.get("sslcrl")) is not None:
        context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    if (certificate := parameters.get("sslcert")) is not None:
        context.load_cert_chain(certificate, parameters.get("sslkey"), parameters.get("sslpassword", ""))
    return context


def _has_root_certificate(root: str | None) -> bool:
    default = Path(os.environ.get("HOME", "/nonexistent")) / ".postgresql" / "root.crt"
    return root is not None or "PGSSLROOTCERT" in os.environ or default.exists()
