"""Certificates of the authorities that outgoing connections trust.

They are those of the machine, unless variables name others, as OpenSSL, requests, curl and Node read them.
"""

import contextlib
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from gateway_runtime.errors import ConfigError

_REPLACING_VARIABLES = (("SSL_CERT_FILE", "SSL_CERT_DIR"), ("REQUESTS_CA_BUNDLE",), ("CURL_CA_BUNDLE",))
"""Variables that replace the machine's certificates.

Only those of the first group with a value count.
"""
_ADDING_VARIABLE = "NODE_EXTRA_CA_CERTS"
CERTIFICATE_VARIABLES = frozenset(name for group in _REPLACING_VARIABLES for name in group) | {_ADDING_VARIABLE}
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")
_CERTIFICATE_SUFFIXES = {".crt", ".pem", ".cer"}


def create_trusting_context(
    create_default: Callable[[], ssl.SSLContext], environment: Mapping[str, str] = os.environ
) -> ssl.SSLContext:
    """Create the context of clients.

    `create_default` makes one that trusts the machine's certificates.

    Raises:
        ConfigError: a variable names nothing that has certificates.
    """
    groups = [[name for name in group if environment.get(name)] for group in _REPLACING_VARIABLES]
    replacing = next((group for group in groups if group), list[str]())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if replacing else create_default()
    for name in replacing:
        _load_certificates(context, name, environment[name])
    if environment.get(_ADDING_VARIABLE):
        _load_certificates(context, _ADDING_VARIABLE, environment[_ADDING_VARIABLE])
    return context


def check_certificate_variables(environment: Mapping[str, str] = os.environ) -> None:
    """Check the files that the variables name.

    Raises:
        ConfigError: one of them has no certificates.
    """
    if any(environment.get(name) for name in CERTIFICATE_VARIABLES):
        create_trusting_context(lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), environment)


def _load_certificates(context: ssl.SSLContext, name: str, value: str) -> None:
    for text in value.split(os.pathsep) if name == "SSL_CERT_DIR" else [value]:
        path = Path(text)
        try:
            if path.is_dir():
                _load_directory(context, path)
            else:
                context.load_verify_locations(cafile=path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ConfigError(f"{name}: {path} has no certificates that can be read: {reason}") from None


def _load_directory(context: ssl.SSLContext, directory: Path) -> None:
    """Load the certificates of a directory.

    Raises:
        ValueError: it has neither.
    """
    files = sorted(directory.iterdir())
    if any(_HASHED_NAME.fullmatch(file.name) for file in files):
        context.load_verify_locations(capath=directory)
        return
    count = 0
    for file in files:
        with contextlib.suppress(ssl.SSLError):  # it may be a key
            if file.suffix in _CERTIFICATE_SUFFIXES:
                context.load_verify_locations(cafile=file)
                count += 1
    if not count:
        raise ValueError("the directory has no certificate files")
