"""First lines of docstrings, and existence of the code names in backticks.

A name may be a parameter, a member or another definition.
"""

import ast
import builtins
import io
import keyword
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gateway.domain import errors
from tests.test_architecture import MODULES, ROOT, check_each, list_imports

NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
RAISED = re.compile(r"^ +([A-Z]\w+):", re.MULTILINE)
BACKTICKS = re.compile(r"`([^`\n]+)`")
Function = ast.FunctionDef | ast.AsyncFunctionDef
MAX_FIRST_LINE_WORDS = 12
VAGUE_SUBJECT = re.compile(
    r"(what|whatever|who|whoever|whom|whose|one|that|those|this|these|it|its|they|he|she|we|you|none|nobody|nothing"
    r"|some(one|body|thing)|every(one|body|thing))\b",
    re.IGNORECASE,
)
# Names of tools, and of protocols, libraries and examples that no module uses: OAuth, ASGI, Postgres, the MCP SDK.
FOREIGN_NAMES = {
    "batch",
    "calculator",
    "state",
    "code",
    "iss",
    "send",
    "receive",
    "numeric",
    "maxResults",
    "TokenStorage",
}


def test_names_that_do_not_exist_are_found() -> None:
    source = """
class Queue:
    '''Calls that wait. `waiting`: the calls; `mislaid`: nothing.'''

    def __init__(self):
        self.waiting = []

    def push(self, call, user_id):
        '''Add `call` of `user_id`; `urgent` ones go first, see `Queue.pull()` and `push_call`.'''
        # `call` is no `thing`
        self.waiting.append(call)
"""
    names = {name for _, name in list_unknown_names(source)}
    assert names == {"mislaid", "urgent", "Queue.pull()", "push_call", "thing"}


@check_each(MODULES)
def test_names_in_backticks_exist(path: Path) -> None:
    unknown = [f"{path.relative_to(ROOT)}:{line} `{name}`" for line, name in list_unknown_names(path.read_text())]
    assert not unknown, ", ".join(unknown)


def test_long_and_vague_first_docstring_lines_are_found() -> None:
    words = "two three four five six seven eight nine ten eleven twelve thirteen"
    source = f'''
@mcp.tool()
def call(): """Two {words}"""
def run(): """{words}

    two
    """
LIMIT = 1
"""Two {words}"""
def wait(): """What waits."""
def push(): """Oneself, without a vague subject, as one of several."""
'''
    assert list(list_unclear_first_lines(source)) == [9, 10]


def test_first_docstring_lines_are_short_and_have_a_named_subject() -> None:
    folders = ("tests", "benchmarks", "packaging", "migrations", "examples")
    paths = [*MODULES, *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))]
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in paths for line in list_unclear_first_lines(path.read_text())
    ]
    assert not found, ", ".join(found)


def list_unclear_first_lines(source: str) -> Iterator[int]:
    """Line of each docstring whose first line is long or vague.

    Docstrings of tools are left out: a gateway flags or withholds a tool whose description has changed.
    """
    for line, text, scope in list_docstrings(ast.parse(source), ()):
        first_line = text.strip().split("\n")[0]
        is_unclear = len(first_line.split()) > MAX_FIRST_LINE_WORDS or VAGUE_SUBJECT.match(first_line)
        if is_unclear and not (scope and is_tool(scope[-1])):
            yield line


def is_tool(node: ast.AST) -> bool:
    decorators = node.decorator_list if isinstance(node, Function) else []
    return any(ast.unparse(decorator).startswith("mcp.tool(") for decorator in decorators)


def test_tree_of_errors_is_complete() -> None:
    lines = {line.lstrip(" │├└─") for line in (errors.__doc__ or "").splitlines() if line}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.GatewayError)]
    missing = [
        kind.__name__ for kind in kinds if f"{kind.__name__} {kind.status} {kind.code}" not in map(squeeze, lines)
    ]
    assert not missing


def squeeze(line: str) -> str:
    return " ".join(line.split())


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "AGENTS.md", "docs/glossary.md"])
def test_names_in_guides_exist(page: str) -> None:
    """Check the names in guides for contributors.

    Guides name functions and classes, which are renamed now and then.
    """
    names = {name.removesuffix("()") for name in BACKTICKS.findall((ROOT / page).read_text()) if NAME.fullmatch(name)}
    others = [ROOT / "Makefile", *(ROOT / "tests").rglob("*.py"), *(ROOT / "migrations").glob("*.sql")]
    known = {word for path in others for word in re.findall(r"\w+", path.read_text())} | list_all_names()
    assert not {name for name in names if not is_known(name, known, is_call=False)}


def list_unknown_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each name in backticks that nothing defines.

    A word without an underscore must be known to its function, class or module; other names anywhere in the code.
    """
    tree = ast.parse(source)
    local = set(list_used_names(tree))
    for line, text, scope in [*list_docstrings(tree, ()), *list_comments(tree, source)]:
        known = local.union(*map(list_members, scope))
        for name in [*BACKTICKS.findall(text), *RAISED.findall(text.partition("Raises:")[2])]:
            if NAME.fullmatch(name) and not is_known(name.removesuffix("()"), known, is_call=name.endswith("()")):
                yield line, name


def is_known(name: str, local: set[str], *, is_call: bool) -> bool:
    first, *parts = name.split(".")
    if first in sys.stdlib_module_names or first in list_libraries() or name in list_files():
        return True
    if not parts and is_call:
        return name in local or name in list_functions()
    if not parts and name.islower() and "_" not in name:
        return name in local or name in list_wire_names() or name in FOREIGN_NAMES
    return all(part in local or part in list_all_names() or part in FOREIGN_NAMES for part in (first, *parts))


def list_docstrings(node: ast.AST, scope: tuple[ast.AST, ...]) -> Iterator[tuple[int, str, tuple[ast.AST, ...]]]:
    """List the line, text and scope of each docstring.

    Docstrings below assignments are included. The scope has the classes and functions around.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | Function):
            yield from list_docstrings(child, (*scope, child))
        elif isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            yield child.lineno, str(child.value.value), scope


def list_comments(tree: ast.Module, source: str) -> Iterator[tuple[int, str, tuple[ast.AST, ...]]]:
    """List the line, text and scope of each comment.

    The scope has the classes and functions around the comment, and their variables, which it may name.
    """
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | Function)]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and "`" in token.string:
            line = token.start[0]
            around = [block for block in blocks if block.lineno <= line <= (block.end_lineno or 0)]
            variables = [node for block in around for node in ast.walk(block) if isinstance(node, ast.Name)]
            yield line, token.string, (*around, *variables)


def list_members(node: ast.AST) -> Iterator[str]:
    """List a function's parameters, a class's members, or a variable's name.

    The members of a class include those of its bases.
    """
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, Function):
        yield from (argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg))
        yield from (attribute.attr for attribute in ast.walk(node) if isinstance(attribute, ast.Attribute))
    elif isinstance(node, ast.ClassDef):
        yield from list_class_members(node)
        for base in node.bases:
            for cls in list_classes_by_name().get(ast.unparse(base).rpartition(".")[2], ()):
                yield from list_members(cls)


def list_class_members(cls: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(cls):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
                if node.name == "__init__":
                    yield from list_members(node)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name
            case _:
                pass


def list_used_names(tree: ast.Module) -> Iterator[str]:
    """List the names that a docstring's word may mean.

    Definitions, imports, keywords and literals of the module.
    """
    yield from keyword.kwlist
    yield from dir(builtins)
    for node in tree.body:
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case _:
                pass
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if text.isidentifier():
                yield text
            case ast.keyword(arg=str(name)):
                yield name
            case _:
                pass


@cache
def list_libraries() -> frozenset[str]:
    """Top-level names of all imported packages."""
    imports = (name for path in MODULES for name in list_imports(path))
    return frozenset(name.partition(".")[0] for name in imports)


@cache
def list_files() -> frozenset[str]:
    return frozenset(path.name for path in MODULES)


@cache
def list_wire_names() -> frozenset[str]:
    """Fields of all classes, and the values of all `Literal` types."""
    names: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
                    names |= {str(value.value) for value in ast.walk(values) if isinstance(value, ast.Constant)}
                case ast.ClassDef(body=body):
                    fields = (field.target for field in body if isinstance(field, ast.AnnAssign))
                    names |= {field.id for field in fields if isinstance(field, ast.Name)}
                case _:
                    pass
    return frozenset(names)


@cache
def list_all_names() -> frozenset[str]:
    """List the names of all packages and settings.

    Definitions, imports, attributes, keywords, names in literals and parameters.
    """
    names = set(re.findall(r"^#?\s*([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for path in MODULES:
        names |= {path.stem, *path.relative_to(ROOT).parts}
        tree = ast.parse(path.read_text())
        names |= set(list_used_names(tree))
        for node in ast.walk(tree):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    names.add(name)
                case ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(asname=str(name)):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case _:
                    pass
    return frozenset(names)


@cache
def list_functions() -> frozenset[str]:
    nodes = (node for path in MODULES for node in ast.walk(ast.parse(path.read_text())))
    return frozenset(node.name for node in nodes if isinstance(node, Function))


@cache
def list_classes_by_name() -> dict[str, list[ast.ClassDef]]:
    classes: dict[str, list[ast.ClassDef]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)
    return classes
