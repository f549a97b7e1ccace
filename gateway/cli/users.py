"""`agent-gateway users`: export and erase all that is one user's."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.database import run_with_database
from gateway.cli.output import open_export
from gateway.config import Settings

if TYPE_CHECKING:
    from gateway.store.database import Database

app = typer.Typer(help="Export and erase all that is one user's.", no_args_is_help=True)

UserArgument = Annotated[str, typer.Argument(help="Name of the user, the owner of a key.")]


@app.command("export")
def export_user(
    user: UserArgument,
    output: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
) -> None:
    """Write everything that is stored of a user as JSON lines."""
    from gateway.store.admin.user_data import UserDataStore

    async def export(database: "Database", _settings: Settings) -> None:
        with open_export(output) as write:
            async for lines in UserDataStore(database).export_lines(user, by="cli"):
                write(lines)

    run_with_database(export)


@app.command("erase")
def erase_user(
    user: UserArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Erase without asking.")] = False,
) -> None:
    """Revoke a user's keys, and erase everything that is stored.

    Usage stays without the name, and the audit log stays.
    """
    from gateway.store.admin.user_data import UserDataStore

    if not yes:
        typer.confirm(f"Erase all data of {user}?", abort=True)

    async def erase(database: "Database", _settings: Settings) -> dict[str, int]:
        return await UserDataStore(database).erase(user, by="cli")

    for table, rows in run_with_database(erase).items():
        print(f"{rows:8}  {table}")
