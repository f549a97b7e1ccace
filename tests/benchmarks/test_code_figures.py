"""Figures on names and sizes, of a generated source tree."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.code_figures import LIMITS, ROOT, Tree, format_offenders, main, read_tree

PORTS = """
from typing import Any, Protocol


class Store(Protocol):
    def find(self, key: str) -> Any: ...


class Named:
    def get_name(self) -> str: ...
"""
STORE = """
import ast
from argparse import Action as Base

from gateway.ports import Named, Store
from . import ports


class Memory(Store, Named):
    def __init__(self) -> None: ...
    def find(self, key: str) -> str: ...
    def get_name(self) -> str: ...
    def close(self) -> None:

        def _close() -> None: ...


class Cached(Memory, Base):
    def find(self, key: str) -> str: ...
    def format_usage(self) -> str: ...
    def close(self) -> None: ...
    @property
    def size(self) -> int: ...
    @size.setter
    def size(self, size: int) -> None: ...


class Visitor(ast.NodeVisitor):
    def visit_Name(self, node: ast.Name) -> None: ...
    def generic_visit(self, node: ast.AST) -> None: ...


class Unrelated:
    def find(self, key: str) -> str: ...  # fmt: skip


class Reads(ports.Store):
    def find(self, key: str) -> str: ...
"""
TOOLS = """
class Store:
    async def close(self): ...
"""
CACHE = """
class Memory:
    class Store:
        def _close(self): ...
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, text in {
        "gateway/__init__.py": "",
        "gateway/ports.py": PORTS,
        "gateway/store.py": STORE,
        "tools_server/cache.py": CACHE,
        "tools_server/store.py": TOOLS,
        "tests/test_store.py": "def ignored(): ...",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


@pytest.fixture
def tree(root: Path) -> Tree:
    return read_tree(root)


def test_functions_are_counted_unless_a_base_class_or_library_names_them(tree: Tree) -> None:
    assert [(function.path, function.qualname) for function in tree.named_functions] == [
        ("gateway/ports.py", "Store.find"),
        ("gateway/ports.py", "Named.get_name"),
        ("gateway/store.py", "Memory.close"),
        ("gateway/store.py", "Memory.close._close"),
        ("gateway/store.py", "Cached.size"),
        ("gateway/store.py", "Unrelated.find"),
        ("tools_server/cache.py", "Memory.Store._close"),
        ("tools_server/store.py", "Store.close"),
    ]


def test_figures_count_names_classes_and_sizes(tree: Tree) -> None:
    non_blank = sum(bool(line.strip()) for line in (PORTS + STORE + TOOLS + CACHE).splitlines())
    assert tree.compute_figures() == pytest.approx(
        {
            "one_word": 100 * 7 / 8,
            "shared": 100 * 4 / 8,
            "duplicate_classes": 1,
            "any": 2000 / non_blank,
            "fmt_skip": 1000 / non_blank,
            "longest_file": len(STORE.splitlines()),
            "longest_function": 3,
            "folder": 2,
        }
    )


def test_offenders_are_listed_by_package(tree: Tree) -> None:
    listed = format_offenders(tree)
    assert listed.startswith("gateway: 5\n  gateway/store.py:13: Memory.close (4 times, one word)\n")
    assert "gateway/ports.py:6: Store.find (one word)" in listed
    assert "get_name" not in listed
    assert "tools_server: Store: tools_server/cache.py:3, tools_server/store.py:2" in listed


def test_two_trees_are_printed_side_by_side(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    (other / "gateway").mkdir(parents=True)
    (other / "gateway" / "a.py").write_text("def find_key(): ...\n")
    main(["--tree", str(root), "--against", str(other), "--names"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["other", "now"]
    assert printed[1].split()[-3:] == ["0.0", "87.5", "35"]


def test_unknown_revision_is_refused(root: Path) -> None:
    with pytest.raises(SystemExit, match="neither a folder nor a revision"):
        main(["--tree", str(root), "--against", "no-such-revision"])


def test_revision_is_read_from_git(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", root, *command], check=True)
    (root / "gateway" / "store.py").unlink()
    monkeypatch.setattr("benchmarks.code_figures.ROOT", root)
    main(["--tree", str(root), "--against", "HEAD"])
    assert capsys.readouterr().out.splitlines()[1].split()[-3:] == ["87.5", "75.0", "35"]


def test_figures_of_this_source_tree_are_within_their_limits() -> None:
    tree = read_tree(ROOT)
    exceeded = {name: figure for name, figure in tree.compute_figures().items() if figure > LIMITS[name].maximum}
    assert exceeded == {}, format_offenders(tree)
