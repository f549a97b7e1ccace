"""Which module may import which. Reads the imports of every module and fails on a breach."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "gateway_runtime", "tools_server")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

BASE = {"gateway.domain", "gateway.common", "gateway.config", "gateway.ports", "gateway_runtime"}
API_MAY = BASE | {"gateway.agent.service", "gateway.api", "gateway.store", "gateway.wire"}
RULES: dict[str, set[str]] = {
    "gateway.domain": {"gateway.domain"},
    "gateway.ports": {"gateway.domain", "gateway.ports"},
    "gateway.common": {"gateway.domain", "gateway.common", "gateway.config", "gateway_runtime"},
    "gateway.config": {"gateway.domain", "gateway_runtime"},
    "gateway.llm": BASE | {"gateway.llm"},
    "gateway.mcp_client": BASE | {"gateway.mcp_client"},
    "gateway.store": BASE | {"gateway.store"},
    "gateway.wire": BASE | {"gateway.wire"},
    "gateway.agent": BASE | {"gateway.agent"},
    "gateway.simulator": BASE | {"gateway.simulator", "gateway.llm.recording"},
    "gateway.api": API_MAY,
    "gateway_runtime": {"gateway_runtime"},
    "tools_server": {"tools_server", "gateway_runtime"},
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
LIBRARIES: dict[str, set[str]] = {
    "gateway.domain": DOMAIN_LIBRARIES,
    "gateway.ports": DOMAIN_LIBRARIES,
    "gateway.common": COMMON_LIBRARIES,
    "gateway.config": COMMON_LIBRARIES,
}
FENCES: dict[str, tuple[str, ...]] = {
    "groq": ("gateway.llm.providers",),
    "mcp": ("gateway.mcp_client", "gateway.api.mcp", "tools_server"),
    "sqlmodel": ("gateway.store", "tools_server.tasks"),
    "fastapi": ("gateway.api", "gateway.app"),
    "starlette": ("gateway.api", "gateway.app", "gateway.wire.sse", "gateway.simulator", "tools_server"),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if is_module(submodule) else str(node.module)


def classes_of(path: Path) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def within(name: str, allowed: set[str] | tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def rule_for(module: str, rules: dict[str, set[str]]) -> set[str] | None:
    return next((allowed for prefix, allowed in rules.items() if within(module, (prefix,))), None)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_allowed_packages(path: Path) -> None:
    module = name_of(path)
    ours = {name for name in imports_of(path) if within(name, PACKAGES)} - {"gateway", module}
    allowed = rule_for(module, RULES)
    if allowed is not None:
        assert not {name for name in ours if not within(name, allowed)}
    if module.startswith("gateway"):
        assert not {name for name in ours if within(name, ("tools_server",))}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_library_is_imported_only_by_allowed_packages(path: Path) -> None:
    module = name_of(path)
    for name in imports_of(path):
        library = name.split(".")[0]
        if library in FENCES:
            assert within(module, FENCES[library]), f"{module} imports {library}"


@pytest.mark.parametrize("path", [p for p in MODULES if rule_for(name_of(p), LIBRARIES) is not None], ids=name_of)
def test_core_packages_import_only_allowed_libraries(path: Path) -> None:
    known = rule_for(name_of(path), LIBRARIES)
    assert known is not None
    for name in imports_of(path):
        top = name.split(".")[0]
        assert top in PACKAGES or top in known or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", [p for p in MODULES if not within(name_of(p), ("gateway.ports",))], ids=name_of)
def test_protocols_are_defined_in_ports(path: Path) -> None:
    """`gateway/ports/` has every protocol of the package."""
    if path.is_relative_to(ROOT / "gateway"):
        names = {base.id for cls in classes_of(path) for base in cls.bases if isinstance(base, ast.Name)}
        assert "Protocol" not in names


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in MODULES}), ids=lambda folder: str(folder.relative_to(ROOT))
)
def test_package_docstring_starts_with_one_sentence(folder: Path) -> None:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    assert docstring
    assert docstring.split("\n\n")[0].endswith(".")
