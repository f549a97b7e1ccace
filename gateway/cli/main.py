"""The command `agent-gateway`.

It starts the gateway, migrates its database, manages API keys, and chats from a terminal.
"""

import asyncio
import os
import sys
from typing import Annotated

import typer

from gateway.cli import api_keys, audit, compose, definitions, evaluation, mcp, mcp_stdio, tools_token, users
from gateway.cli.errors import report_config_errors
from gateway.cli.serve import serve_until_stopped
from gateway.config import load_settings
from gateway.server.services import open_postgres

app = typer.Typer(
    name="agent-gateway", help="An agent gateway that speaks MCP.", no_args_is_help=True, add_completion=False
)
db = typer.Typer(help="Manage the database schema.", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(api_keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(mcp.app, name="mcp")
app.add_typer(users.app, name="users")
app.add_typer(definitions.app, name="tools")
app.command("compose-secrets")(compose.write_secrets)
app.command("tools-token")(tools_token.print_token)
app.command("mcp-stdio")(mcp_stdio.serve_stdio)
app.command("eval")(evaluation.evaluate)


@app.command("up")
def run_everything(
    reload: Annotated[bool, typer.Option("--reload", help="Start again when the source changes.")] = False,
    dev_origins: Annotated[
        bool, typer.Option("--dev-origins", help="Add `dev`, the usual development servers, to CORS_ORIGINS.")
    ] = False,
) -> None:
    """Run everything on this machine.

    Postgres, the simulated Groq (without a key), the tool server, the gateway.
    """
    from gateway.server.stack import run_stack

    with report_config_errors():
        settings = load_settings()
        if settings.postgres_url is not None:
            from gateway.store import database

            asyncio.run(database.wait_for_addresses(settings.postgres_url, settings))
        code = run_stack(settings, reload=reload, dev_origins=dev_origins)
    raise typer.Exit(code)


@app.command("serve")
def run_gateway(
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Number of processes that share the port. Default: GATEWAY_WORKERS, or 1."),
    ] = None,
    fd: Annotated[int | None, typer.Option(hidden=True, help="The listening socket of one worker of several.")] = None,
) -> None:
    """Run the gateway alone, configured by the environment."""
    code = 0
    with report_config_errors(parent_fd=0 if fd is not None else None):
        settings = load_settings()
        count = workers or settings.gateway_workers
        if fd is None and count > 1:
            from gateway.server.stack import run_workers

            code = run_workers(settings, count)
        else:
            serve_until_stopped(settings, fd)
    raise typer.Exit(code)


@app.command("console")
def run_console() -> None:
    """Run the web console alone: a client of the gateway at CONSOLE_GATEWAY_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "gateway_console"])  # noqa: S606 - its libraries stay out of here


@app.command("chat")
def chat_in_terminal(
    prompt: Annotated[str | None, typer.Argument(help="The prompt. Without it: an interactive conversation.")] = None,
    url: Annotated[
        str | None, typer.Option(help="URL of the gateway. Default: this machine, port GATEWAY_PORT.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model for the turns. Default: the gateway's.")] = None,
    key: Annotated[
        str | None, typer.Option(help="API key or token. Default: API_KEY. Other users of this machine see it.")
    ] = None,
) -> None:
    """Chat with a running gateway."""
    from gateway.cli import chat
    from gateway_runtime import tls

    with report_config_errors():
        settings = load_settings()
        tls_context = None if url else tls.build_client_context(settings.tls_files)
    if key is None and settings.api_key is not None:
        key = settings.api_key.get_secret_value()
    code = chat.run_chat(prompt, url or settings.local_url, api_key=key, model=model, tls_context=tls_context)
    raise typer.Exit(code)


@db.command("upgrade")
def upgrade_database() -> None:
    """Migrate the schemas of the gateway and the tool server."""
    from gateway.store import database, migrations

    with report_config_errors():
        settings = load_settings()
        with open_postgres(settings) as url:
            direct_url = asyncio.run(database.wait_for_addresses(url, settings))
            with database.raise_database_error(direct_url):
                migrations.upgrade_schema(direct_url)
    print("The database is up to date.")


@db.command("shell")
def open_database_shell(
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments for psql, after `--`.")] = None,
) -> None:
    """Open psql on the gateway's database.

    It starts the embedded Postgres if that does not run. For example: agent-gateway db shell -- -c "SELECT 1".
    """
    from gateway.cli.psql import run_psql
    from gateway.store import database

    with report_config_errors():
        settings = load_settings()
        with open_postgres(settings) as url:
            asyncio.run(database.wait_until_ready(url, settings.database_wait_seconds))
            code = run_psql(url, arguments or [])
    raise typer.Exit(code)


@db.command("reencrypt")
def reencrypt_secrets() -> None:
    """Encrypt all stored secrets with the current key.

    Afterwards the old keys can be removed from the settings.
    """
    from gateway.cli.database import run_with_database
    from gateway.store.admin import reencryption
    from gateway.store.encryption import Cipher, load_encryption_secrets

    result = run_with_database(
        lambda database, settings: reencryption.reencrypt_secrets(
            database, Cipher(*load_encryption_secrets(settings)), by="cli"
        )
    )
    print(f"{result.encrypted} secrets are encrypted with the current key.")
    for name in result.unreadable:
        print(f"No configured key decrypts the {name}.")
    raise typer.Exit(1 if result.unreadable else 0)


def main() -> None:
    app()
