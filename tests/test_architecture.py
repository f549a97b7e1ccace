"""Who may import whom. Reads the imports of every module and fails on a breach."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for package in ("gateway", "tools_server") for path in (ROOT / package).rglob("*.py"))

LEAVES = {
    "gateway.messages",
    "gateway.events",
    "gateway.errors",
    "gateway.config",
    "gateway.log",
    "gateway.deadline",
    "gateway.redaction",
    "gateway.schemas",
    "gateway.shared_redis",
    "gateway.urls",
}
AGENT_MAY = LEAVES | {"gateway.agent", "gateway.llm.base", "gateway.tools.base"}
AGENT_DOORS = {"gateway.agent.runner", "gateway.agent.following"}
API_MAY = (
    LEAVES
    | AGENT_DOORS
    | {"gateway.registry", "gateway.api", "gateway.store", "gateway.wire", "gateway.llm.base", "gateway.tools.base"}
)
RULES: dict[str, set[str]] = {
    "gateway.llm": LEAVES | {"gateway.llm"},
    "gateway.tools": LEAVES | {"gateway.tools"},
    "gateway.store": LEAVES | {"gateway.store"},
    "gateway.wire": LEAVES | {"gateway.wire"},
    "gateway.agent": AGENT_MAY,
    "gateway.api": API_MAY,
    "gateway.mcp_server": LEAVES | {"gateway.agent.runner", "gateway.tools.base", "gateway.api.auth", "gateway.peers"},
    "gateway.peers": LEAVES | {"gateway.api.auth"},
    "tools_server": {"tools_server"},
}
DOORS = {
    "gateway.store.embedded": set(),
    "tools_server.cli": {"tools_server", "gateway.store.embedded"},
}
LEAF_LIBRARIES = {"pydantic", "pydantic_settings", "msgspec", "structlog"}
THEIR_OWN = {
    "gateway.schemas": {"jsonschema", "referencing", "pydantic_core"},
    "gateway.redaction": {"regex"},
    "gateway.shared_redis": {"redis", "limits"},
}
FENCES: dict[str, tuple[str, ...]] = {
    "groq": ("gateway.llm.groq",),
    "mcp": ("gateway.tools", "gateway.mcp_server", "tools_server"),
    "sqlmodel": ("gateway.store", "tools_server.tasks"),
    "fastapi": ("gateway.api", "gateway.app", "gateway.mcp_server"),
    "starlette": (
        "gateway.api",
        "gateway.app",
        "gateway.mcp_server",
        "gateway.wire.sse",
        "gateway.llm.simulator",
        "tools_server.server",
        "tools_server.plain",
        "tools_server.auth",
    ),
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


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def within(name: str, allowed: set[str] | tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def rule_for(module: str) -> set[str] | None:
    if module in DOORS:
        return DOORS[module]
    return next((allowed for prefix, allowed in RULES.items() if within(module, (prefix,))), None)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_what_its_ring_may(path: Path) -> None:
    module = name_of(path)
    ours = {name for name in imports_of(path) if within(name, ("gateway", "tools_server"))} - {"gateway", module}
    allowed = rule_for(module)
    if allowed is not None:
        assert not {name for name in ours if not within(name, allowed)}
    if module.startswith("gateway"):
        assert not {name for name in ours if within(name, ("tools_server",))}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_vendor_stays_behind_its_fence(path: Path) -> None:
    module = name_of(path)
    for name in imports_of(path):
        library = name.split(".")[0]
        if library in FENCES:
            assert within(module, FENCES[library]), f"{module} imports {library}"


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaf_imports_only_leaves_and_four_libraries(leaf: str) -> None:
    import sys

    path = ROOT.joinpath(*leaf.split(".")).with_suffix(".py")
    for name in imports_of(path):
        top = name.split(".")[0]
        known = LEAF_LIBRARIES | THEIR_OWN.get(leaf, set())
        assert within(name, LEAVES) or top in known or top in sys.stdlib_module_names, name
