"""`agent-gateway audit`: export and verify the audit log."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.database import run_with_database
from gateway.cli.output import open_export
from gateway.config import Settings

if TYPE_CHECKING:
    from gateway.store.database import Database

app = typer.Typer(help="Export and verify the audit log.", no_args_is_help=True)


@app.command("export")
def export_log(
    after: Annotated[int, typer.Option(min=0, help="Number of the last entry of the previous export.")] = 0,
    output: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
) -> None:
    """Write the entries as JSON lines, chained by hash."""
    from gateway.store.admin.audit_chain import AuditChain

    async def export(database: "Database", _settings: Settings) -> None:
        with open_export(output) as write:
            async for lines in AuditChain(database).export_lines(after):
                write(lines)

    run_with_database(export)


@app.command("verify")
def verify_log(
    file: Annotated[Path | None, typer.Argument(help="Export to verify. Default: the log in the database.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Hash of the last entry, noted earlier: shows that the end is missing.")
    ] = None,
    after: Annotated[int, typer.Option(min=0, help="Number of the last entry before those of the file.")] = 0,
) -> None:
    """Verify that no entry is missing, was added or changed."""
    from gateway.store.admin.audit_chain import AuditChain, ChainBroken, ChainVerifier

    verifier = ChainVerifier(after)
    hashes: set[str] = set()

    async def verify(database: "Database", _settings: Settings) -> None:
        async for line in AuditChain(database).iterate_lines(after):
            verify_line(line)

    def verify_line(line: bytes) -> None:
        verifier.add_lines([line])
        if verifier.head is not None and verifier.head.hash == head:
            hashes.add(verifier.head.hash)

    try:
        if file is None:
            run_with_database(verify)
        else:
            with file.open("rb") as lines:
                for line in lines:
                    verify_line(line)
    except (ChainBroken, OSError) as error:
        print(f"The audit log is not intact: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if head is not None and head not in hashes:
        print("The audit log is not intact: it has no entry with the hash of --head", file=sys.stderr)
        raise typer.Exit(1)
    if verifier.head is None:
        print("The audit log has no entries.")
    else:
        print(f"Entries {verifier.head.first} to {verifier.head.last} are intact. Head: {verifier.head.hash}")
