"""Figures on names and sizes in the product's code: `python -m benchmarks.code_figures`.

Parses the Python files of `gateway`, `gateway_console`, `gateway_runtime` and `tools_server`, whichever the tree has.
Imports only the libraries that their classes derive from.

Functions
    Every `def` and `async def`, nested ones too. Definitions of one name in one scope (overloads, a property and its
    setter) count once. Not counted, because their authors could not choose the name:

    - dunder and sunder names (`__aenter__`, `_missing_`);
    - methods whose name a base class defines: a Protocol or class of this tree, found by following imports by name, or
      a library's class, found by importing it. A Protocol's own methods count, once, in the Protocol. A class that
      satisfies a Protocol without naming it as a base overrides nothing;
    - names in `DICTATED_NAMES`, each with the library that asks for it.

    A base that cannot be imported in this environment is treated as if it defined nothing.
One-word names
    Functions without an underscore inside their name: `stop`, `_ask`. Share of all functions.
Shared names
    Functions whose name at least `MIN_SHARED` functions have. Leading underscores do not distinguish: `_ask` is `ask`.
Class names that exist twice
    Class names that one top-level package defines more than once, nested classes included.
`Any` and `fmt: skip` per thousand lines
    The name `Any` in code, imports and annotations included, not in strings; comments with `fmt: skip`. Blank lines do
    not count as lines.
Longest file, longest function
    In lines, blank ones included. A function counts from `def`, without its decorators.
Files in one folder
    Python files directly in a folder, without `__init__.py`.
"""

import argparse
import ast
import fnmatch
import importlib
import io
import subprocess
import tarfile
import tempfile
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "gateway_console", "gateway_runtime", "tools_server")
MIN_SHARED = 4
# Names that a library looks up on classes or functions that derive from nothing of its own. Patterns as of `fnmatch`.
DICTATED_NAMES = {
    "visit_*": "ast.NodeVisitor",
    "receive": "ASGI",
    "send": "ASGI",
    "lifespan": "Starlette",
    "connection_made": "asyncio protocols",
    "connection_lost": "asyncio protocols",
    "data_received": "asyncio protocols",
    "eof_received": "asyncio protocols",
    "pause_writing": "asyncio protocols",
    "resume_writing": "asyncio protocols",
    "process_bind_param": "sqlalchemy.TypeDecorator",
    "process_result_value": "sqlalchemy.TypeDecorator",
    "upgrade": "Alembic",
    "downgrade": "Alembic",
    "model_post_init": "pydantic",
    "pytest_*": "pytest",
}

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Function(NamedTuple):
    path: str
    line: int
    qualname: str
    lines: int
    is_chosen: bool

    @property
    def name(self) -> str:
        return self.qualname.rsplit(".", 1)[-1]

    @property
    def stem(self) -> str:
        return self.name.lstrip("_")

    @property
    def has_one_word(self) -> bool:
        return "_" not in self.name.strip("_")


class Class(NamedTuple):
    path: str
    line: int
    name: str


class Limit(NamedTuple):
    label: str
    unit: str
    maximum: float
    digits: int


LIMITS = {
    "one_word": Limit("functions with a one-word name", "%", 35, 1),
    "shared": Limit(f"functions that share their name with {MIN_SHARED - 1} others", "%", 12, 1),
    "duplicate_classes": Limit("class names that exist twice", "", 0, 0),
    "any": Limit("`Any` per thousand lines", "", 10, 1),
    "fmt_skip": Limit("`fmt: skip` per thousand lines", "", 0.3, 2),
    "longest_file": Limit("longest file", "lines", 450, 0),
    "longest_function": Limit("longest function", "lines", 60, 0),
    "folder": Limit("most Python files in one folder", "", 20, 0),
}


@dataclass
class Module:
    """A parsed file, with its imports and classes."""

    name: str
    path: str
    text: str
    tree: ast.Module
    imports: dict[str, str] = field(default_factory=dict)
    """Absolute dotted name by local name."""
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    """By qualified name."""


@dataclass
class Tree:
    """Contents of a source tree, as the figures need them."""

    functions: list[Function]
    classes: list[Class]
    lines: dict[str, int]
    """Lines by file."""
    any_uses: dict[str, int]
    fmt_skips: dict[str, int]
    non_blank: int

    @property
    def named_functions(self) -> list[Function]:
        """Functions whose authors could choose the name."""
        return [function for function in self.functions if function.is_chosen]

    def count_shared_names(self) -> dict[str, int]:
        """Number of functions by name, for names of at least `MIN_SHARED` functions."""
        counts = Counter(function.stem for function in self.named_functions)
        return {name: count for name, count in counts.items() if count >= MIN_SHARED}

    def find_duplicate_classes(self) -> dict[str, list[Class]]:
        """Definitions by name, for names that a package defines twice."""
        by_name: dict[tuple[str, str], list[Class]] = defaultdict(list)
        for found in self.classes:
            by_name[found.path.split("/")[0], found.name].append(found)
        return {f"{package}: {name}": found for (package, name), found in by_name.items() if len(found) > 1}

    def count_files_by_folder(self) -> Counter[str]:
        return Counter(str(Path(path).parent) for path in self.lines if Path(path).name != "__init__.py")

    def compute_figures(self) -> dict[str, float]:
        named, shared, thousands = self.named_functions, self.count_shared_names(), self.non_blank / 1000 or 1
        return {
            "one_word": 100 * sum(function.has_one_word for function in named) / max(len(named), 1),
            "shared": 100 * sum(function.stem in shared for function in named) / max(len(named), 1),
            "duplicate_classes": len(self.find_duplicate_classes()),
            "any": sum(self.any_uses.values()) / thousands,
            "fmt_skip": sum(self.fmt_skips.values()) / thousands,
            "longest_file": max(self.lines.values(), default=0),
            "longest_function": max((function.lines for function in self.functions), default=0),
            "folder": max(self.count_files_by_folder().values(), default=0),
        }


def read_tree(root: Path) -> Tree:
    """Parse the packages below a folder."""
    modules = [
        _read_module(root, path)
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]
    names = _BaseClassNames(modules)
    tree = Tree([], [], {}, {}, {}, 0)
    for module in modules:
        tree.functions += _read_functions(module, names)
        tree.classes += [Class(module.path, node.lineno, node.name) for node in module.classes.values()]
        lines = module.text.splitlines()
        tree.lines[module.path] = len(lines)
        tree.non_blank += sum(bool(line.strip()) for line in lines)
        tokens = list(tokenize.generate_tokens(io.StringIO(module.text).readline))
        tree.any_uses[module.path] = sum(token.type == tokenize.NAME and token.string == "Any" for token in tokens)
        tree.fmt_skips[module.path] = sum(
            token.type == tokenize.COMMENT and "fmt: skip" in token.string for token in tokens
        )
    return tree


def _read_module(root: Path, path: Path) -> Module:
    parts = list(path.relative_to(root).with_suffix("").parts)
    package = parts[:-1]
    if parts[-1] == "__init__":
        parts = package
    text = path.read_text()
    module = Module(".".join(parts), path.relative_to(root).as_posix(), text, ast.parse(text, str(path)))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                module.imports[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                module.imports[alias.asname or alias.name] = f"{source}.{alias.name}"
    for scope, node in _definitions(module.tree):
        if isinstance(node, ast.ClassDef):
            module.classes.setdefault(f"{scope}{node.name}", node)
    return module


def _definitions(node: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.ClassDef | FunctionNode]]:
    """Yield classes and functions below a node, with their scope's dotted prefix."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield scope, child
            yield from _definitions(child, f"{scope}{child.name}.")
        else:
            yield from _definitions(child, scope)


class _BaseClassNames:
    """Names that classes inherit from classes of the tree and of libraries."""

    def __init__(self, modules: list[Module]) -> None:
        self._modules = {module.name: module for module in modules}
        self._inherited: dict[tuple[str, str], frozenset[str]] = {}

    def inherited_names(self, module: Module, qualname: str) -> frozenset[str]:
        key = module.name, qualname
        if key not in self._inherited:
            self._inherited[key] = frozenset()  # ends a cycle of bases
            names: set[str] = set()
            for base in module.classes[qualname].bases:
                if dotted := _dotted_name(base):
                    names |= self._names_of(module, dotted)
            self._inherited[key] = frozenset(names)
        return self._inherited[key]

    def _names_of(self, module: Module, dotted: str) -> frozenset[str]:
        """Find all names of a class, inherited ones included."""
        if dotted in module.classes:
            return _own_names(module.classes[dotted]) | self.inherited_names(module, dotted)
        first, _, rest = dotted.partition(".")
        absolute = module.imports.get(first, f"builtins.{first}") + (f".{rest}" if rest else "")
        parts = absolute.split(".")
        for end in range(len(parts) - 1, 0, -1):
            source = self._modules.get(".".join(parts[:end]))
            if source is not None:
                return self._names_of(source, ".".join(parts[end:])) if source is not module else frozenset()
        return _library_names(absolute)


def _dotted_name(node: ast.expr) -> str | None:
    """`a.b.C` of a base class expression, without type arguments."""
    if isinstance(node, ast.Subscript):
        return _dotted_name(node.value)
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := _dotted_name(node.value)):
        return f"{left}.{node.attr}"
    return None


def _own_names(node: ast.ClassDef) -> frozenset[str]:
    names: set[str] = set()
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(child.name)
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            names.add(child.target.id)
        elif isinstance(child, ast.Assign):
            names |= {target.id for target in child.targets if isinstance(target, ast.Name)}
    return frozenset(names)


@cache
def _library_names(absolute: str) -> frozenset[str]:
    """The names that a library's class defines.

    The names of `object` are left out. The set is empty if the class cannot be imported.
    """
    parts = absolute.split(".")
    if parts[0] in PACKAGES:
        return frozenset()
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return frozenset(dir(found)) - frozenset(dir(object)) if isinstance(found, type) else frozenset()
    return frozenset()


def _read_functions(module: Module, names: _BaseClassNames) -> Iterator[Function]:
    seen: set[str] = set()
    for scope, node in _definitions(module.tree):
        if isinstance(node, ast.ClassDef):
            continue
        qualname = f"{scope}{node.name}"
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        repeated = qualname in seen
        seen.add(qualname)
        owner = scope.rstrip(".")
        is_override = owner in module.classes and node.name in names.inherited_names(module, owner)
        is_special = node.name.endswith("_") and node.name.startswith("_") and len(node.name) > 2
        is_dictated = any(fnmatch.fnmatch(node.name, pattern) for pattern in DICTATED_NAMES)
        is_chosen = not (repeated or is_override or is_special or is_dictated)
        yield Function(module.path, node.lineno, qualname, lines, is_chosen)


@contextmanager
def open_source_tree(source: str) -> Iterator[Path]:
    """Yield a folder with the source tree.

    `source` is a folder, or a git revision that is unpacked into a temporary one.
    """
    if Path(source).is_dir():
        yield Path(source)
        return
    archive = subprocess.run(["git", "-C", ROOT, "archive", source], capture_output=True, check=False)
    if archive.returncode:
        raise SystemExit(f"{source} is neither a folder nor a revision: {archive.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def format_table(columns: dict[str, Tree]) -> str:
    """Format figures side by side, with the limits."""
    width = max(len(limit.label) for limit in LIMITS.values()) + 7
    rows = [" " * width + "".join(f"{title[:12]:>14}" for title in [*columns, "at most"])]
    figures = [tree.compute_figures() for tree in columns.values()]
    for key, limit in LIMITS.items():
        label = f"{limit.label}, {limit.unit}" if limit.unit else limit.label
        cells = [f"{value[key]:.{limit.digits}f}" for value in figures] + [f"{limit.maximum:g}"]
        rows.append(f"{label:<{width}}" + "".join(f"{cell:>14}" for cell in cells))
    counts = [f"{len(tree.named_functions)} of {len(tree.functions)}" for tree in columns.values()]
    rows.append(f"{'functions counted':<{width}}" + "".join(f"{count:>14}" for count in counts))
    return "\n".join(rows)


def format_offenders(tree: Tree) -> str:
    """List names to change and code to split, by package."""
    shared = tree.count_shared_names()
    packages: dict[str, list[Function]] = defaultdict(list)
    for function in tree.named_functions:
        if function.has_one_word or function.stem in shared:
            packages[str(Path(function.path).parent)].append(function)
    rows: list[str] = []
    for package, functions in sorted(packages.items(), key=lambda item: -len(item[1])):
        rows.append(f"\n{package}: {len(functions)}")
        functions.sort(
            key=lambda function: (-shared.get(function.stem, 0), function.stem, function.path, function.line)
        )
        for function in functions:
            reasons = [f"{shared[function.stem]} times"] if function.stem in shared else []
            reasons += ["one word"] if function.has_one_word else []
            rows.append(f"  {function.path}:{function.line}: {function.qualname} ({', '.join(reasons)})")
    rows.append("\nClass names that exist twice")
    for name, classes in sorted(tree.find_duplicate_classes().items()):
        rows.append(f"  {name}: " + ", ".join(f"{found.path}:{found.line}" for found in classes))
    rows += _list_above("Long functions", LIMITS["longest_function"], _function_lengths(tree))
    rows += _list_above("Long files", LIMITS["longest_file"], tree.lines)
    rows += _list_above("Full folders", LIMITS["folder"], tree.count_files_by_folder())
    rows += _list_above("Files with `Any`", None, tree.any_uses)
    rows += _list_above("Files with `fmt: skip`", None, tree.fmt_skips)
    return "\n".join(rows).lstrip()


def _function_lengths(tree: Tree) -> dict[str, int]:
    return {f"{function.path}:{function.line}: {function.qualname}": function.lines for function in tree.functions}


def _list_above(title: str, limit: Limit | None, sizes: dict[str, int]) -> list[str]:
    over = [(size, name) for name, size in sizes.items() if size > (limit.maximum if limit else 0)]
    return [f"\n{title}", *(f"  {size:>4} {name}" for size, name in sorted(over, reverse=True))]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.code_figures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="the folder that has the packages (this project's)")
    parser.add_argument("--names", action="store_true", help="list what exceeds the limits, by package")
    parser.add_argument("--against", metavar="REV-OR-DIR", help="print the figures of another tree beside")
    options = parser.parse_args(arguments)
    tree = read_tree(options.tree)
    columns = {"now": tree}
    if options.against:
        with open_source_tree(options.against) as folder:
            columns = {Path(options.against).name: read_tree(folder), **columns}
    print(format_table(columns))
    if options.names:
        print()
        print(format_offenders(tree))


if __name__ == "__main__":
    main()
