"""`agent-gateway tools`: import OpenAPI documents as tools."""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from gateway.cli.errors import report_config_errors
from gateway.common.sanitize import escape_for_terminal
from gateway.config import load_settings
from gateway.domain.messages import JsonObject

_TIMEOUT_SECONDS = 150.0
_MAX_VALUE_LENGTH = 100
_SIGNS = {"add": "+", "change": "~", "keep": "=", "skip": "!", "remove": "-", "lost": "?"}

app = typer.Typer(help="Define tools from OpenAPI documents.", no_args_is_help=True)


@app.callback()
def _require_command() -> None:
    """Define tools from OpenAPI documents."""


@app.command("import")
def import_document(
    file: Annotated[str, typer.Argument(help="File in JSON or YAML, `-`, or a URL that the tool server reads.")],
    operation: Annotated[
        list[str] | None, typer.Option(help="Glob over operation ids, or over 'GET /path'; repeatable. Default: all.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Prefix of the tools' names.")] = "",
    server_url: Annotated[str | None, typer.Option(help="URL of the API, instead of the document's.")] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, or NAME=@FILE to keep the value private; repeatable.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Change the definitions, instead of showing changes.")] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Publish what is added or changed.")] = False,
    remove_missing: Annotated[
        bool, typer.Option("--remove-missing", help="Delete definitions that the document lost.")
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="URL of the gateway. Default: this machine, port GATEWAY_PORT.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="API key of an admin. Default: API_KEY. Other users of this machine see it.")
    ] = None,
) -> None:
    """Show what a document would change, and change it with --apply."""
    from gateway_runtime import tls

    with report_config_errors():
        settings = load_settings()
        context = None if url else tls.build_client_context(settings.tls_files)
    if key is None and settings.api_key is not None:
        key = settings.api_key.get_secret_value()
    body: JsonObject = {
        **_read_source(file),
        "operations": operation or ["*"],
        "prefix": prefix,
        "server_url": server_url,
        "secrets": dict(map(_read_secret, secret or ())),
        "apply": apply,
        "publish": publish,
        "remove_missing": remove_missing,
    }
    report = asyncio.run(_send(f"{url or settings.local_url}/api/v1/tools/definitions/import", key, body, context))
    for line in describe_report(report):
        print(escape_for_terminal(line))


def _read_source(file: str) -> JsonObject:
    if file.startswith(("http://", "https://")):
        return {"url": file}
    try:
        return {"document": sys.stdin.read() if file == "-" else Path(file).read_text()}
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {file}: {type(error).__name__}", param_hint="FILE") from None


def _read_secret(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise typer.BadParameter("must be NAME=VALUE or NAME=@FILE", param_hint="--secret")
    if value.startswith("@"):
        try:
            value = Path(value[1:]).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(
                f"cannot read {value[1:]}: {type(error).__name__}", param_hint="--secret"
            ) from None
    return name, value


async def _send(url: str, key: str | None, body: JsonObject, context: ssl.SSLContext | None) -> JsonObject:
    """Send the import to the gateway; a refusal ends the command."""
    import aiohttp

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connector = aiohttp.TCPConnector(ssl=context or True)
    try:
        async with (
            asyncio.timeout(_TIMEOUT_SECONDS),
            aiohttp.ClientSession(connector=connector) as session,
            session.post(url, json=body, headers=headers) as response,
        ):
            answer: Any = json.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        typer.echo(f"No gateway answered at {escape_for_terminal(url)}: {type(error).__name__}.", err=True)
        raise typer.Exit(1) from None
    if response.status != 200:
        error = cast(JsonObject, answer).get("error") if isinstance(answer, dict) else None
        message = cast(JsonObject, error).get("message") if isinstance(error, dict) else None
        typer.echo(escape_for_terminal(str(message or f"status {response.status}")), err=True)
        raise typer.Exit(1)
    return cast(JsonObject, answer)


def describe_report(report: JsonObject) -> list[str]:
    """Describe an import in lines: its operations, and what changes."""
    lines = [f"{report['document']} ({report['origin']})"]
    for operation in cast("list[JsonObject]", report["operations"]):
        reason = f": {operation['reason']}" if operation.get("reason") else ""
        name = operation["name"] or "-"
        lines.append(
            f"{_SIGNS[operation['action']]} {operation['action']:6} {name:40} {operation['operation']}{reason}"
        )
        for field, (old, new) in cast("dict[str, list[Any]]", operation["changes"]).items():
            lines += [f"      {field}", f"        - {_shorten(old)}", f"        + {_shorten(new)}"]
        lines += [f"      note: {note}" for note in operation["notes"]]
    lines += [f"needs the secret {name}: {what}" for name, what in cast("dict[str, str]", report["secrets"]).items()]
    lines.append("Applied." if report["applied"] else "Nothing has changed. --apply does what is shown.")
    return lines


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}…"
