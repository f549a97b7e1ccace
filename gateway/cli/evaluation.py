"""The command `agent-gateway eval`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.errors import report_config_errors


def evaluate(
    file: Annotated[Path, typer.Argument(help="The cases, in YAML or JSON. See docs/evaluation.md.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A model to run; repeat it to compare several. Default: the file's.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, max=100, help="Runs of each case.")] = 1,
    recordings: Annotated[
        Path | None, typer.Option(help="Answer from the recordings in this directory, and from nothing else.")
    ] = None,
    simulated: Annotated[bool, typer.Option("--simulated", help="Run against the simulator.")] = False,
    record: Annotated[
        Path | None, typer.Option(help="Record the exchanges with the model into this directory.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="File of the last run, which is compared and replaced. Default: in GATEWAY_DATA_DIR."),
    ] = None,
) -> None:
    """Run a set of cases against a model.

    The table has the differences to the last run. The exit code is 1 if a case failed.
    """
    from gateway.common.logging import configure_logging
    from gateway.common.sanitize import escape_for_terminal
    from gateway.config import ConfigError, load_settings
    from gateway.evaluation.cases import load_suite
    from gateway.evaluation.command import run_suite
    from gateway.evaluation.results import format_table, load_scores, save_scores

    configure_logging(json=False, level="WARNING")
    with report_config_errors():
        suite = load_suite(file)
        if recordings is not None and not any(recordings.glob("*.json")):
            raise ConfigError(f"{recordings}: there are no recordings in this directory.")
        path = results or load_settings().gateway_data_dir / "evaluations" / f"{file.stem}.json"
        work = run_suite(
            suite, models=model or [], runs=runs, recordings=recordings, simulated=simulated, record=record
        )
        scores = asyncio.run(work)
        previous = load_scores(path)
        save_scores(path, scores)
    print(escape_for_terminal(format_table(scores, previous)))
    raise typer.Exit(1 if scores.has_failures else 0)
