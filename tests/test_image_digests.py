"""Tests of `packaging/image_digests.py` with a registry over real HTTP."""

import hashlib
import json
import runpy
import shutil
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
IMAGES = (
    "python:3.13-slim",
    "postgres:18",
    "redis:8",
    "prom/prometheus:v3.7.3",
    "grafana/grafana:12.3.0",
    "jaegertracing/jaeger:2.12.0",
    "otel/opentelemetry-collector:0.140.0",
)
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class Registry(ThreadingHTTPServer):
    """A registry that wants a token, as Docker Hub does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.media_type = INDEX_TYPE
        self.stated_digest = ""
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def make_manifest(self, path: str) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": self.media_type, "annotations": {"path": path}}).encode()

    def get_digest(self, image: str) -> str:
        name, tag = image.split(":")
        repository = name if "/" in name else f"library/{name}"
        return f"sha256:{hashlib.sha256(self.make_manifest(f'/v2/{repository}/manifests/{tag}')).hexdigest()}"


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path.startswith("/token?service=registry&scope=read"):
            self._send(200, b'{"token": "anonymous"}')
        elif self.headers["Authorization"] != "Bearer anonymous":
            challenge = f'Bearer realm="{self.server.url}/token",service="registry",scope="read"'
            self._send(401, b"", {"WWW-Authenticate": challenge})
        else:
            body = self.server.make_manifest(self.path)
            digest = self.server.stated_digest or f"sha256:{hashlib.sha256(body).hexdigest()}"
            self._send(200, body, {"Docker-Content-Digest": digest})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Write nothing."""


@pytest.fixture
def registry() -> Generator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(30)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("Dockerfile", "compose.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def pin_images(registry: Registry, files: Path) -> int:
    program = runpy.run_path(str(ROOT / "packaging" / "image_digests.py"))
    return program["main"]([registry.url], files)


def read(files: Path) -> str:
    return "".join((files / name).read_text() for name in ("Dockerfile", "compose.yaml"))


def test_every_image_is_pinned_to_the_digest_of_its_index(registry: Registry, files: Path) -> None:
    assert pin_images(registry, files) == 0
    for image in IMAGES:
        assert f"{image}@{registry.get_digest(image)}" in read(files)
    first = read(files)
    registry.media_type = "application/vnd.docker.distribution.manifest.list.v2+json"  # a new release
    assert pin_images(registry, files) == 0
    assert read(files) != first
    assert read(files).count("@sha256:") == first.count("@sha256:") == len(IMAGES) + 1  # Python in both files
    for image in IMAGES:
        assert f"{image}@{registry.get_digest(image)}" in read(files)


def test_no_image_is_named_elsewhere() -> None:
    """Compare the images that are pulled with those that can be pinned."""
    text = (ROOT / "Dockerfile").read_text() + (ROOT / "compose.yaml").read_text()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    pulled = [line for line in lines if line.startswith(("FROM ", "image: ", "ARG PYTHON_IMAGE"))]
    assert len(pulled) == 9
    assert all("_IMAGE" in line or line == "image: mcp-agent-gateway" for line in pulled)


def test_digest_that_is_not_that_of_the_manifest_changes_nothing(
    registry: Registry, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read(files)
    registry.stated_digest = f"sha256:{'0' * 64}"
    assert pin_images(registry, files) == 1
    assert read(files) == before
    assert "its manifest has sha256:" in capsys.readouterr().err


def test_manifest_of_one_platform_changes_nothing(registry: Registry, files: Path) -> None:
    before = read(files)
    registry.media_type = "application/vnd.oci.image.manifest.v1+json"
    assert pin_images(registry, files) == 1
    assert read(files) == before


def test_uv_and_tools_are_installed_by_version_and_hash() -> None:
    dockerfile, makefile = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    for text in (dockerfile, makefile):
        installs = [line for line in text.splitlines() if " install " in line and ("pip" in line or "uv" in line)]
        assert installs
        for line in installs:
            assert "--require-hashes" in line or "--no-deps --editable ." in line, line
    assert "tool run" not in makefile
    for name in ("requirements-uv", "requirements-tools"):
        wanted = [line for line in (ROOT / f"{name}.in").read_text().splitlines() if not line.startswith("#")]
        locked = (ROOT / f"{name}.lock").read_text()
        for requirement in wanted:
            assert "==" in requirement
            assert f"\n{requirement} \\\n    --hash=sha256:" in locked


def check_images(files: Path) -> int:
    program = runpy.run_path(str(ROOT / "packaging" / "image_digests.py"))
    return program["main"](["--check"], files)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("Dockerfile", "FROM debian:13-slim AS tools"),
        ("Dockerfile", "FROM --platform=linux/amd64 debian@sha256:1234"),
        ("Dockerfile", "COPY --from=ghcr.io/tool:1 /a /a"),
        ("compose.yaml", "    image: nginx"),
        ("compose.yaml", "    image: ${PROXY_IMAGE:-nginx:1}"),
        ("deploy/kubernetes/proxy.yaml", '        - image: "nginx:1"'),
    ],
)
def test_image_without_a_digest_is_named_and_fails_the_release(
    registry: Registry, files: Path, capsys: pytest.CaptureFixture[str], file: str, line: str
) -> None:
    assert check_images(files) == 1
    named = capsys.readouterr().err
    assert [image for image in IMAGES if f": {image} has no digest" not in named] == []
    assert pin_images(registry, files) == 0
    assert check_images(files) == 0
    (files / file).parent.mkdir(parents=True, exist_ok=True)
    with (files / file).open("a") as target:
        target.write(f"{line}\n")
    assert check_images(files) == 1
    assert f"{file}: " in capsys.readouterr().err


def test_release_builds_no_image_before_the_check() -> None:
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    steps = ("run: make image-digests\n", "run: make image-digests ARGS=--check", "docker buildx build")
    places = [workflow.index(step) for step in steps]
    assert places == sorted(places)
