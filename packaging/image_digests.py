"""Pins container images to the digests of their registry.

Rewrites the Dockerfile and compose.yaml: `postgres:18` becomes `postgres:18@sha256:…`, and a digest of an older run is
replaced. A digest is taken only if it is the SHA-256 of the manifest that the registry sent.

Usage: python packaging/image_digests.py [<registry>]

With `--check` it writes nothing, and fails if an image has no digest, also one that it could not pin.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = "https://registry-1.docker.io"
FILES = ("Dockerfile", "compose.yaml")
_IMAGE = re.compile(r"(?<=_IMAGE)(=|:-)(?P<name>[a-z0-9][a-z0-9._/-]*):(?P<tag>[\w.-]+)(?:@sha256:[0-9a-f]{64})?")
_REFERENCE = re.compile(r"^\s*(?:- )?(?:FROM(?: --\S+)*|COPY --from=|image:|\w+_IMAGE:|ARG \w+=)\s*(\S+)", re.MULTILINE)
_DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
_OWN_IMAGE = "mcp-agent-gateway"
_TIMEOUT_SECONDS = 30.0
_MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
"""Types of indexes of all platforms.

A manifest of one platform would not run on the others.
"""


class DigestError(Exception):
    """The registry has no usable manifest of an image."""


def main(arguments: list[str], root: Path = ROOT) -> int:
    if arguments == ["--check"]:
        return check_digests(root)
    registry = arguments[0] if arguments else REGISTRY
    digests: dict[str, str] = {}
    texts = {root / name: (root / name).read_text() for name in FILES}
    try:
        for text in texts.values():
            for match in _IMAGE.finditer(text):
                image = f"{match['name']}:{match['tag']}"
                digests[image] = digests.get(image) or fetch_digest(registry, match["name"], match["tag"])
    except (DigestError, URLError, TimeoutError) as error:
        sys.stderr.write(f"No file was changed: {error}\n")
        return 1
    for path, text in texts.items():
        path.write_text(_IMAGE.sub(lambda match: _pin(match, digests), text))
    for image, digest in sorted(digests.items()):
        sys.stdout.write(f"{image}@{digest}\n")
    return 0


def check_digests(root: Path) -> int:
    """Name the images without a digest in all files that name images."""
    files = [root / name for name in FILES] + sorted((root / "deploy").rglob("*.yaml"))
    lacking = [
        f"{path.relative_to(root)}: {image}"
        for path in files
        for image in map(_get_image, _REFERENCE.findall(path.read_text()))
        if image and not _DIGEST.search(image)
    ]
    sys.stderr.writelines(f"{line} has no digest: run `make image-digests`\n" for line in lacking)
    return 1 if lacking else 0


def _get_image(reference: str) -> str:
    """Return the image of a reference.

    It is empty for the project's own and for variables.
    """
    image = _DEFAULT.sub(r"\1", reference.strip("\"'"))
    return "" if image.startswith("$") or image == _OWN_IMAGE else image


def fetch_digest(registry: str, name: str, tag: str) -> str:
    """Fetch the digest of an image, official or of a publisher.

    Raises:
        DigestError: the registry refuses, or its digest is not that of the manifest.
    """
    repository = name if "/" in name else f"library/{name}"
    url = f"{registry}/v2/{repository}/manifests/{tag}"
    headers = {"Accept": ", ".join(_MANIFEST_TYPES)}
    try:
        body, stated = _get(url, headers)
    except HTTPError as error:
        if error.code != 401:
            raise DigestError(f"{name}:{tag}: the registry answered with status {error.code}") from None
        headers["Authorization"] = f"Bearer {_fetch_token(error.headers['WWW-Authenticate'] or '')}"
        body, stated = _get(url, headers)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if stated not in (None, digest):
        raise DigestError(f"{name}:{tag}: the registry states {stated}, and its manifest has {digest}")
    if json.loads(body).get("mediaType") not in _MANIFEST_TYPES:
        raise DigestError(f"{name}:{tag}: the registry sent no index of platforms")
    return digest


def _fetch_token(challenge: str) -> str:
    """Fetch the token of an anonymous reader."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if "realm" not in fields:
        raise DigestError("the registry asks for a login")
    query = urlencode({name: value for name, value in fields.items() if name in ("service", "scope")})
    body, _ = _get(f"{fields['realm']}?{query}", {})
    return str(json.loads(body)["token"])


def _get(url: str, headers: dict[str, str]) -> tuple[bytes, str | None]:
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise DigestError(f"{url} is not an https address")
    with urlopen(Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - checked above
        return response.read(_MAX_MANIFEST_BYTES), response.headers["Docker-Content-Digest"]


def _pin(match: re.Match[str], digests: dict[str, str]) -> str:
    image = f"{match['name']}:{match['tag']}"
    return f"{match[1]}{image}@{digests[image]}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
