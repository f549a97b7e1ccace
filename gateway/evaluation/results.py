"""Scores of an evaluation, the stored last run, and the table."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.config import ConfigError
from gateway.evaluation.agent import CaseRun

_MAX_PROBLEMS = 5
_MAX_RESULT_BYTES = 16 * 1024 * 1024


class CaseScore(msgspec.Struct):
    """Runs of a case with a variant, and some problems."""

    runs: int = 0
    passed: int = 0
    tokens: int = 0
    cost_usd: float | None = 0.0
    seconds: float = 0.0
    problems: list[str] = msgspec.field(default_factory=list[str])

    def add(self, run: CaseRun, problems: list[str]) -> None:
        self.runs += 1
        self.passed += not problems
        self.tokens += run.tokens
        self.cost_usd = (
            None if self.cost_usd is None or run.cost_usd is None else round(self.cost_usd + run.cost_usd, 9)
        )
        self.seconds = round(self.seconds + run.seconds, 3)
        self.problems += [problem for problem in problems if problem not in self.problems]
        del self.problems[_MAX_PROBLEMS:]


class SuiteScores(msgspec.Struct):
    """Scores by variant and case.

    A variant is a model, with a prompt if there are several.
    """

    suite: str
    at: str = msgspec.field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    variants: dict[str, dict[str, CaseScore]] = msgspec.field(default_factory=dict[str, dict[str, CaseScore]])

    @property
    def has_failures(self) -> bool:
        return any(score.passed < score.runs for scores in self.variants.values() for score in scores.values())


def load_scores(path: Path) -> SuiteScores | None:
    """Read the scores of the last run.

    None if there are none, or if they have another form.
    """
    try:
        if path.stat().st_size > _MAX_RESULT_BYTES:
            return None
        return msgspec.json.decode(path.read_bytes(), type=SuiteScores)
    except (OSError, msgspec.DecodeError):
        return None


def save_scores(path: Path, scores: SuiteScores) -> None:
    """Write the scores for the next run.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(scores)))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.") from None


def format_table(scores: SuiteScores, previous: SuiteScores | None) -> str:
    """Format a row per case and a column per variant.

    Cells tell the differences to the last run.
    """
    names = list(dict.fromkeys(name for variant in scores.variants.values() for name in variant))
    before = previous.variants if previous is not None else {}
    rows = [["case", *scores.variants]]
    rows += [
        [name, *(_format_score(cases[name], before.get(v, {}).get(name)) for v, cases in scores.variants.items())]
        for name in names
    ]
    columns = [
        (_sum_scores(cases), _sum_scores(before[v]) if v in before else None) for v, cases in scores.variants.items()
    ]
    rows.append(["all cases", *(_format_score(now, then) for now, then in columns)])
    for label, name in (("tokens per run", "tokens"), ("USD per run", "cost_usd"), ("seconds per run", "seconds")):
        figures = [(_divide(now, name), then and _divide(then, name)) for now, then in columns]
        rows.append([label, *(_format_figure(now, then) for now, then in figures)])
    return "\n".join([*_align(rows), *_list_problems(scores)])


def _sum_scores(cases: dict[str, CaseScore]) -> CaseScore:
    scores = list(cases.values())
    costs = [score.cost_usd for score in scores]
    return CaseScore(
        runs=sum(score.runs for score in scores),
        passed=sum(score.passed for score in scores),
        tokens=sum(score.tokens for score in scores),
        cost_usd=None if None in costs else round(sum(cost for cost in costs if cost is not None), 9),
        seconds=sum(score.seconds for score in scores),
    )


def _format_score(score: CaseScore, before: CaseScore | None) -> str:
    text = f"{score.passed}/{score.runs}"
    if before is None or not before.runs or not score.runs or score.passed * before.runs == before.passed * score.runs:
        return text
    mark = "+" if score.passed * before.runs > before.passed * score.runs else "-"
    return f"{text} ({mark}, was {before.passed}/{before.runs})"


def _divide(score: CaseScore, name: str) -> float | None:
    """Return a figure of a score per run of a case."""
    total = getattr(score, name)
    return None if total is None else total / max(score.runs, 1)


def _format_figure(number: float | None, before: float | None) -> str:
    if number is None:
        return "-"
    text = f"{number:.4g}"
    return text if before is None or text == f"{before:.4g}" else f"{text} ({number - before:+.2g})"


def _align(rows: list[list[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _list_problems(scores: SuiteScores) -> Iterable[str]:
    for variant, cases in scores.variants.items():
        for name, score in cases.items():
            for problem in score.problems:
                yield f"\n{variant}, {name}: {problem}" if problem is score.problems[0] else f"  {problem}"
