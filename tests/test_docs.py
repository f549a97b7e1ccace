"""Tests of documents against code, files and test names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "AGENTS.md",
    ROOT / "CLAUDE.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# The changelog names paths of earlier releases.
PATH_DOCUMENTS = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]


def list_test_names() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_named_in_documents_exist(document: Path) -> None:
    named = set(re.findall(r"`(test_\w+)(?:\[\w+\])?`", document.read_text()))
    assert named <= list_test_names()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_linked_in_documents_exist(document: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", document.read_text())  # code is no link
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in linked if not (document.parent / link).exists()] == []


def test_paths_and_make_targets_in_agents_md_exist() -> None:
    instructions = (ROOT / "AGENTS.md").read_text()
    paths = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.[a-z]+)?)[` ]", instructions)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = re.findall(r"`make ([a-z-]+)`", instructions)
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize("document", PATH_DOCUMENTS, ids=lambda path: path.name)
def test_source_paths_named_in_documents_exist(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(r"`((?:gateway|gateway_runtime|tools_server|tests|migrations|docs)/[\w./-]*)`", text))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_model_table_matches_the_catalog() -> None:
    from gateway.llm.catalog import GROQ_MODELS

    def format_price(value: float | None) -> str:
        return "-" if value is None else str(value)

    table = (ROOT / "docs" / "groq.md").read_text()
    for model in GROQ_MODELS:
        row = next(line for line in table.splitlines() if line.startswith(f"| `{model.id}` |"))
        assert f"| {model.status} | {model.context_window:,} / {model.max_output_tokens:,} |" in row
        prices = " / ".join(map(format_price, (model.price_in, model.price_out, model.price_cached)))
        assert f"| {prices if model.price_in is not None else '-'} |" in row
        assert f"| {', '.join(model.reasoning_efforts) or '-'} |" in row
        assert row.endswith(
            "| tools in the prompt |" if not model.tools else f"| {'yes' if model.parallel_calls else 'no'} |"
        )
