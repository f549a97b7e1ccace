"""Build the tool server's bundle for Claude Desktop: `make mcpb`.

A click installs the bundle. The manifest lists the tools of the running code. The official tool validates the manifest
and packs the bundle.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tools_server.config import Settings
from tools_server.server import create_server
from tools_server.tasks.store import TaskStore

ROOT = Path(__file__).parent.parent
MCPB_TOOL = ROOT / "tests" / "node" / "node_modules" / ".bin" / "mcpb"
CONTENTS = (
    "pyproject.toml",
    "requirements.lock",
    "LICENSE",
    "README.md",
    "alembic.ini",
    "gateway",
    "gateway_console",
    "gateway_runtime",
    "tools_server",
    "migrations",
)
IGNORED_FILES = shutil.ignore_patterns("__pycache__", "*.pyc")


def build_manifest() -> dict[str, object]:
    """Describe what Claude Desktop shows and runs.

    The format is mcpb manifest 0.4. Its `uv` servers install their own Python.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    server = create_server(Settings(_env_file=None), TaskStore("postgresql+asyncpg://nobody@127.0.0.1:9/none"))  # type: ignore[call-arg]
    tools = asyncio.run(server.list_tools())
    return {
        "manifest_version": "0.4",
        "name": "mcp-agent-gateway-tools",
        "display_name": "Calculator, web search, tasks",
        "version": project["version"],
        "description": "An exact calculator, web search, page reading and a personal task list.",
        "long_description": "Tasks are stored in an embedded PostgreSQL in the folder that you choose.",
        "author": {"name": "The MCP agent gateway's authors"},
        "license": "MIT",
        "server": {
            "type": "uv",
            "entry_point": "tools_server/cli.py",
            "mcp_config": {
                "command": "uv",
                "args": ["run", "--directory", "${__dirname}", "tools-server", "--stdio"],
                "env": {
                    "GATEWAY_DATA_DIR": "${user_config.data_dir}",
                    "TAVILY_API_KEY": "${user_config.tavily_api_key}",
                },
            },
        },
        "tools": [{"name": tool.name, "description": (tool.description or "").split("\n")[0]} for tool in tools],
        "compatibility": {"platforms": ["darwin", "linux"], "runtimes": {"python": project["requires-python"]}},
        "user_config": {
            "data_dir": {
                "type": "directory",
                "title": "Data folder",
                "description": "Folder of the tasks. Choose the gateway's .data folder to share its tasks.",
                "default": "${HOME}/.mcp-agent-gateway",
                "required": True,
            },
            "tavily_api_key": {
                "type": "string",
                "title": "Tavily API key",
                "description": "For web search with Tavily; requires SEARCH_BACKEND as well. Empty: DuckDuckGo.",
                "sensitive": True,
                "required": False,
                "default": "",
            },
        },
    }


def build_bundle(output: Path) -> Path:
    """Stage, validate and pack the bundle; returns its file."""
    stage = output / "mcpb"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    for name in CONTENTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, stage / name, ignore=IGNORED_FILES)
        else:
            shutil.copy(source, stage / name)
    (stage / "manifest.json").write_text(json.dumps(build_manifest(), indent=2) + "\n")
    bundle = output / "tools-server.mcpb"
    for arguments in (["validate", str(stage / "manifest.json")], ["pack", str(stage), str(bundle)]):
        subprocess.run([str(MCPB_TOOL), *arguments], check=True, cwd=MCPB_TOOL.parent.parent.parent)  # noqa: S603
    return bundle


if __name__ == "__main__":
    print(build_bundle(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build").resolve()))  # noqa: T201
