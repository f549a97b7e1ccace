"""Write the public schemas of a release to docs/releases/<version>.

Run it as `make release-schemas VERSION=… COMMIT=…`. Four files: the OpenAPI document, the JSON schema of the events,
the environment variables with the keys of mcp.json, and the commands with their options. The code comes from the
commit, the libraries from this environment. tests/test_compatibility.py compares the newest release's files with the
code.
"""

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import typer
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

ROOT = Path(__file__).parent.parent
RELEASES = ROOT / "docs" / "releases"
# Newest location first: a release's own code may have it elsewhere.
CREATE_APP = ("gateway.app:create_app",)
EVENT = ("gateway.domain.events:Event", "gateway.events:Event")
GATEWAY_COMMANDS = ("gateway.cli.main:app", "gateway.cli:app")
GATEWAY_SETTINGS = ("gateway.config:Settings",)
SERVER_CONFIG = ("gateway.mcp_client.server_config:ServerConfig", "gateway.tools.servers:ServerConfig")
TOOLS_COMMANDS = ("tools_server.cli:app",)
TOOLS_SETTINGS = ("tools_server.config:Settings",)
INTERNAL_SERVER_FIELDS = {"name", "fault"}


def generate_schemas() -> dict[str, object]:
    """Generate the files of the importable code: content by file name."""
    return {
        "openapi.json": _build_openapi_document(),
        "events.json": msgspec.json.schema(_import_attribute(EVENT)),
        "settings.json": {
            "gateway": sorted(_list_environment_names(_import_attribute(GATEWAY_SETTINGS))),
            "tools_server": sorted(_list_environment_names(_import_attribute(TOOLS_SETTINGS))),
            "mcp.json": sorted(set(_import_attribute(SERVER_CONFIG).model_fields) - INTERNAL_SERVER_FIELDS),
        },
        "commands.json": {
            **_describe_command("agent-gateway", typer.main.get_command(_import_attribute(GATEWAY_COMMANDS))),
            **_describe_command("tools-server", typer.main.get_command(_import_attribute(TOOLS_COMMANDS))),
        },
    }


def write_release(version: str, commit: str) -> Path:
    """Generate the files of a release from its commit; returns their directory."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603, S607
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(directory, filter="data")
        environment = os.environ | {"PYTHONPATH": directory}
        command = [sys.executable, __file__, "--dump"]
        dump = subprocess.run(command, cwd=directory, env=environment, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603
    target = RELEASES / version
    target.mkdir(parents=True, exist_ok=True)
    for name, content in json.loads(dump).items():
        (target / name).write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return target


def _import_attribute(locations: tuple[str, ...]) -> Any:  # the type differs per release
    for location in locations:
        module, _, attribute = location.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise ImportError(f"none of {', '.join(locations)} exists: add the current location to {Path(__file__).name}")


def _build_openapi_document() -> object:
    settings = _import_attribute(GATEWAY_SETTINGS)(
        _env_file=None,
        database_url="postgresql://127.0.0.1:9/none",
        groq_api_key="not-used-here",
        mcp_server_url="http://127.0.0.1:9/mcp",
    )
    return _import_attribute(CREATE_APP)(settings).openapi()


def _list_environment_names(settings: type[BaseSettings]) -> set[str]:
    return {name for field, info in settings.model_fields.items() for name in _list_field_names(field, info)}


def _list_field_names(field: str, info: FieldInfo) -> list[str]:
    match info.validation_alias:
        case None:
            return [field.upper()]
        case AliasChoices(choices=choices):
            return [str(choice).upper() for choice in choices]
        case alias:
            return [str(alias).upper()]


def _describe_command(name: str, command: Any) -> dict[str, list[str]]:
    """Map each command to its options and arguments."""
    parameters = sorted(
        option
        for parameter in command.params
        if not getattr(parameter, "hidden", False)
        for option in (parameter.opts if parameter.param_type_name == "option" else [str(parameter.name).upper()])
    )
    descriptions = {name: parameters}
    for child, subcommand in getattr(command, "commands", {}).items():
        if not subcommand.hidden:
            descriptions |= _describe_command(f"{name} {child}", subcommand)
    return descriptions


if __name__ == "__main__":
    if sys.argv[1:] == ["--dump"]:
        sys.stdout.write(json.dumps(generate_schemas()))
    else:
        version, commit = sys.argv[1:]
        print(write_release(version, commit))  # noqa: T201
