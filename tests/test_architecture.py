"""Tests of the imports that each module is allowed."""

import ast
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "gateway_console", "gateway_runtime", "tools_server")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

CONFIG_IMPORTS = {"gateway.config", "gateway.settings"}
BASE_IMPORTS = {"gateway.domain", "gateway.common", "gateway.ports", "gateway_runtime"} | CONFIG_IMPORTS
API_IMPORTS = BASE_IMPORTS | {
    "gateway.agent.service",
    "gateway.api",
    "gateway.passthrough",
    "gateway.store",
    "gateway.wire",
}
ALLOWED_IMPORTS: dict[str, set[str]] = {
    "gateway.domain": {"gateway.domain"},
    "gateway.ports": {"gateway.domain", "gateway.ports"},
    "gateway.common": {"gateway.domain", "gateway.common", "gateway_runtime"} | CONFIG_IMPORTS,
    "gateway.config": {"gateway.settings", "gateway_runtime"},
    "gateway.settings": {"gateway.domain", "gateway.settings", "gateway_runtime"},
    "gateway.llm": BASE_IMPORTS | {"gateway.llm"},
    "gateway.mcp_client": BASE_IMPORTS | {"gateway.mcp_client"},
    "gateway.store": BASE_IMPORTS | {"gateway.store"},
    "gateway.wire": BASE_IMPORTS | {"gateway.wire"},
    "gateway.passthrough": BASE_IMPORTS | {"gateway.passthrough"},
    "gateway.webhooks": BASE_IMPORTS | {"gateway.webhooks"},
    "gateway.sandbox": BASE_IMPORTS | {"gateway.sandbox"},
    "gateway.agent": BASE_IMPORTS | {"gateway.agent"},
    "gateway.observation": BASE_IMPORTS
    | {f"gateway.{part}" for part in ("observation", "agent", "api", "llm", "mcp_client", "store")},
    "gateway.simulator": BASE_IMPORTS | {"gateway.simulator", "gateway.llm.recording"},
    "gateway.api": API_IMPORTS,
    "gateway_runtime": {"gateway_runtime"},
    "tools_server": {"tools_server", "gateway_runtime"},
    "gateway_console": {"gateway_console", "gateway_runtime"},
}
DOMAIN_LIBRARIES = {"msgspec", "pydantic"}
COMMON_LIBRARIES = DOMAIN_LIBRARIES | {
    "anyio",
    "cachetools",
    "jsonschema",
    "limits",
    "pydantic_core",
    "pydantic_settings",
    "redis",
    "referencing",
    "regex",
    "structlog",
}
ALLOWED_LIBRARIES: dict[str, set[str]] = {
    "gateway.domain": DOMAIN_LIBRARIES,
    "gateway.ports": DOMAIN_LIBRARIES,
    "gateway.common": COMMON_LIBRARIES,
    "gateway.config": COMMON_LIBRARIES,
    "gateway.settings": COMMON_LIBRARIES,
}
LIBRARY_USERS: dict[str, tuple[str, ...]] = {
    "groq": ("gateway.llm.providers",),
    "openai": ("gateway.llm.providers", "examples"),
    "mcp": ("gateway.mcp_client", "gateway.api.mcp", "tools_server"),
    "sqlmodel": ("gateway.store", "tools_server.common.database", "tools_server.http_tools", "tools_server.tasks"),
    "ag_ui": ("gateway.wire.ag_ui",),
    "a2a": ("gateway.api.routes.a2a", "examples"),
    "google": ("gateway.api.routes.a2a", "examples"),
    "chatkit": ("gateway.api.routes.chatkit", "examples"),
    "nicegui": ("gateway_console",),
    "pydantic_monty": ("gateway.sandbox",),
    "opentelemetry": ("gateway_runtime.telemetry",),
    "prometheus_client": ("gateway_runtime.telemetry",),
    "fastapi": ("gateway.api", "gateway.app", "gateway.server.asgi", "gateway_console"),
    "starlette": (
        "gateway.api",
        "gateway.app",
        "gateway.composition",
        "gateway.observation",
        "gateway.server.asgi",
        "gateway.wire.sse",
        "gateway.simulator",
        "tools_server",
        "gateway_console",
    ),
}


def check_each(paths: Iterable[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Make one test of a check of many files.

    A test for each file would be five thousand tests.
    """
    files = tuple(paths)

    def make_test(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            problems: list[str] = []
            for path in files:
                try:
                    check(path)
                except AssertionError as error:
                    problems.append(f"{path.relative_to(ROOT)}: {error}")
            assert not problems, "\n".join(problems)

        test.__doc__ = check.__doc__
        return test

    return make_test


def get_module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def list_imports(path: Path) -> Iterator[str]:
    """Yield each module that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if is_module(submodule) else str(node.module)


def list_classes(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def is_within(name: str, packages: set[str] | tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def find_rule(module: str, rules: dict[str, set[str]]) -> set[str] | None:
    return next((allowed for prefix, allowed in rules.items() if is_within(module, (prefix,))), None)


@check_each(MODULES)
def test_module_imports_only_allowed_packages(path: Path) -> None:
    module = get_module_name(path)
    own_imports = {name for name in list_imports(path) if is_within(name, PACKAGES)} - {"gateway", module}
    assert is_within(module, ("gateway_console",)) or not {n for n in own_imports if is_within(n, ("gateway_console",))}
    allowed = find_rule(module, ALLOWED_IMPORTS)
    if allowed is not None:
        assert not {name for name in own_imports if not is_within(name, allowed)}
    if module.startswith("gateway"):
        assert not {name for name in own_imports if is_within(name, ("tools_server",))}


@check_each(MODULES)
def test_library_is_imported_only_by_allowed_packages(path: Path) -> None:
    module = get_module_name(path)
    for name in list_imports(path):
        library = name.split(".")[0]
        if library in LIBRARY_USERS:
            assert is_within(module, LIBRARY_USERS[library]), f"{module} imports {library}"


@check_each(path for path in MODULES if find_rule(get_module_name(path), ALLOWED_LIBRARIES) is not None)
def test_core_packages_import_only_allowed_libraries(path: Path) -> None:
    allowed = find_rule(get_module_name(path), ALLOWED_LIBRARIES)
    assert allowed is not None
    for name in list_imports(path):
        library = name.split(".")[0]
        assert library in PACKAGES or library in allowed or library in sys.stdlib_module_names, name


@check_each(path for path in MODULES if not is_within(get_module_name(path), ("gateway.ports",)))
def test_protocols_are_defined_in_ports(path: Path) -> None:
    """Protocols of the gateway are defined in `gateway/ports/` only."""
    if path.is_relative_to(ROOT / "gateway"):
        names = {base.id for cls in list_classes(path) for base in cls.bases if isinstance(base, ast.Name)}
        assert "Protocol" not in names


@check_each(sorted({path.parent for path in MODULES}))
def test_package_docstring_starts_with_one_sentence(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert docstring
    assert docstring.split("\n\n")[0].endswith(".")


EVENTS = {cls.name for cls in list_classes(ROOT / "gateway" / "domain" / "events.py")}


@check_each(MODULES)
def test_match_over_events_is_exhaustive(path: Path) -> None:
    """Check that each `match` over events ends in `assert_never`.

    The type checker thus names each `match` that a new event needs.
    """
    for match in ast.walk(ast.parse(path.read_text())):
        if isinstance(match, ast.Match) and len(EVENTS & set(list_matched_classes(match))) > 1:
            last = match.cases[-1].body[-1]
            assert "assert_never" in ast.unparse(last), f"{path.name}:{match.lineno}"


def list_matched_classes(match: ast.Match) -> Iterator[str]:
    for case in match.cases:
        for pattern in ast.walk(case.pattern):
            if isinstance(pattern, ast.MatchClass):
                yield ast.unparse(pattern.cls).removeprefix("e.")


@check_each(MODULES)
def test_database_connections_are_opened_in_one_module(path: Path) -> None:
    """A connection without the limits of `gateway_runtime.postgres.connections` may wait for ever."""
    if get_module_name(path) == "gateway_runtime.postgres.connections":
        return
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    source = path.read_text()
    assert "asyncpg.connect(" not in source
    assert "create_pool" not in names
    assert "create_async_engine" not in source


TRANSACTIONS = {"session", "transaction", "begin_transaction", "_open_session"}
"""Methods whose block is a transaction of the database."""
IN_TRANSACTION = re.compile(r"\b(session|connection|transaction)\b")


def list_foreign_waits(tree: ast.Module) -> Iterator[int]:
    """List the lines that await something foreign in a transaction."""
    for block in ast.walk(tree):
        if isinstance(block, ast.AsyncWith) and TRANSACTIONS & {_get_method(item) for item in block.items}:
            for node in (node for statement in block.body for node in ast.walk(statement)):
                if isinstance(node, ast.Await) and not IN_TRANSACTION.search(ast.unparse(node)):
                    yield node.lineno
                if isinstance(node, ast.AsyncWith | ast.AsyncFor):
                    yield node.lineno


def _get_method(item: ast.withitem) -> str | None:
    call = item.context_expr
    return call.func.attr if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None


@check_each(MODULES)
def test_transaction_waits_for_nothing_but_the_database(path: Path) -> None:
    assert list(list_foreign_waits(ast.parse(path.read_text()))) == []


def test_wait_for_something_else_in_a_transaction_is_found() -> None:
    code = "async def f():\n async with database.session() as session:\n  await session.exec(q)\n  await http.post(u)"
    assert list(list_foreign_waits(ast.parse(code))) == [4]
