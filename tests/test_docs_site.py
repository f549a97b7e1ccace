"""Tests of packaging/docs_site.py, which collects pages and rewrites their links."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def docs_site(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, for a repository whose only page outside docs/ is README.md."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "packaging" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PAGES_OUTSIDE_DOCS", {"README.md": "index.md"})
    return module


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "docs" / "adr").mkdir(parents=True)
    (root / "zensical.toml").write_text(
        '[project]\nnav = [{ "Start" = "index.md" }, { "More" = [{ "A" = "api.md" }, { "B" = "adr/README.md" }] }]\n'
    )
    (root / "README.md").write_text("# Start\n[the\nAPI](docs/api.md#routes) [decisions](docs/adr) [sources](docs)\n")
    (root / "docs" / "api.md").write_text(
        "# API\n[start](../README.md) [settings](../.env)\n```\n[code](none.md)\n```\n"
    )
    (root / "docs" / "adr" / "README.md").write_text("# Decisions\n[one](one.md) [site](https://example.com)\n")
    (root / "docs" / "adr" / "one.md").write_text("# One\n[API](../api.md)\n")
    (root / ".env").write_text("A=1\n")
    return root


def test_links_between_pages_are_rewritten_for_the_site(
    docs_site: ModuleType, repository: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    docs_site.collect_pages(site, repository)
    assert (site / "index.md").read_text() == "# Start\n[the\nAPI](api.md#routes) [decisions](adr/README.md) sources\n"
    assert (site / "adr" / "README.md").read_text() == "# Decisions\n[one](one.md) [site](https://example.com)\n"
    assert (site / "adr" / "one.md").read_text() == "# One\n[API](../api.md)\n"


def test_linked_files_are_copied_and_code_is_unchanged(docs_site: ModuleType, repository: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    docs_site.collect_pages(site, repository)
    page = (site / "api.md").read_text()
    assert page == "# API\n[start](index.md) [settings](files/env)\n```\n[code](none.md)\n```\n"
    assert (site / "files" / "env").read_text() == "A=1\n"


def test_broken_link_and_page_missing_in_the_navigation_are_errors(
    docs_site: ModuleType, repository: Path, tmp_path: Path
) -> None:
    (repository / "docs" / "new.md").write_text("[gone](gone.md)\n")
    (repository / "docs" / "api.md").unlink()
    with pytest.raises(docs_site.BrokenDocs) as error:
        docs_site.collect_pages(tmp_path / "site", repository)
    assert str(error.value).splitlines() == [
        "docs/new.md: add new.md to `nav` in zensical.toml",
        "zensical.toml: `nav` lists api.md, which does not exist",
        "README.md: the link docs/api.md has no target",
        "docs/adr/one.md: the link ../api.md has no target",
        "docs/new.md: the link gone.md has no target",
    ]
