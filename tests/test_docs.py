"""The documents are true of the code where that can be checked."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def known_tests() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    named = set(re.findall(r"`(test_\w+)(?:\[\w+\])?`", document.read_text()))
    assert named <= known_tests()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_links_to_exists(document: Path) -> None:
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in linked if not (document.parent / link).exists()] == []


def test_readme_names_every_route_of_the_api() -> None:
    from gateway.app import create_app
    from gateway.config import Settings

    settings = Settings(
        _env_file=None, database_url="postgresql://x/y", groq_api_key="x", mcp_server_url="http://x/mcp"
    )  # type: ignore[call-arg,arg-type]
    readme = (ROOT / "README.md").read_text()
    paths = {re.sub(r"\{\w+\}", "{}", path) for path in create_app(settings).openapi()["paths"]}
    named = {
        re.sub(r"\{\w+\}", "{}", path) for path in re.findall(r"(?:GET|POST|PUT|PATCH|DELETE) (/[\w/{}.-]*)", readme)
    }
    named |= {path for path in ("/ready",) if f"`GET {path}`" in readme}
    assert paths - named == set()
