"""The results as a page in Markdown."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.gateway_only import Line
from benchmarks.processes import ROOT
from benchmarks.subjects import Contestant, LiteLLM
from benchmarks.workloads import Result

_PACKAGES = ("aiohttp", "fastapi", "groq", "mcp", "msgspec", "sqlmodel", "sse-starlette", "uvicorn", "uvloop")
_HEAD = (
    "workload", "contestant", "CPU µs/token", "ratio", "CPU ms/request", "Postgres ms/request",
    "first token ms p50", "p99", "between tokens ms p50", "p99", "tokens/s", "MB", "errors",
)  # fmt: skip


def page(results: list[Result], lines: list[Line], contestants: list[Contestant], skipped: list[str]) -> str:
    """The whole page."""
    return "\n".join(
        [
            "# Results",
            "",
            "Made by `make bench`, all side by side in one run; [README.md](README.md) says what is what.",
            "CPU: the server's own processes, Postgres apart; ratio: to the gateway's. MB: resident memory at most.",
            "Absolute figures drift with the machine, and others may use it: compare within one run.",
            "",
            f"Machine: {machine()}.",
            f"Versions: {_versions()}.",
            "",
            *table(results),
            "",
            "The gateway alone:",
            "",
            *_rows(("what", "figure", "to reach"), [(line.what, line.figure, line.target) for line in lines]),
            "",
            "The contestants:",
            "",
            *(f"- **{contestant.name}**: {contestant.what}." for contestant in contestants),
            *(f"- {why}" for why in skipped),
            "",
        ]
    )


def table(results: list[Result]) -> list[str]:
    """One row a workload and contestant. The ratio is of the CPU time a token."""
    base = {result.workload.name: result for result in results if result.contestant == "gateway"}
    return _rows(_HEAD, [_row(result, base.get(result.workload.name)) for result in results])


def _row(result: Result, base: Result | None) -> tuple[str, ...]:
    stream = result.workload.stream
    ratio = f"{result.token_us / base.token_us:.2f}" if base is not None and base.token_us else ""
    return (
        result.workload.name,
        result.contestant,
        f"{result.token_us:.1f}",
        ratio,
        f"{result.request_ms:.2f}",
        f"{result.postgres_ms:.2f}" if result.postgres else "",
        f"{result.first_ms(50):.1f}",
        f"{result.first_ms(99):.1f}",
        f"{result.gap_ms(50):.1f}" if stream else "",
        f"{result.gap_ms(99):.1f}" if stream else "",
        f"{result.tokens_a_second:,.0f}",
        f"{result.resident / 1e6:.0f}",
        ", ".join(f"{reason}: {number}" for reason, number in result.errors.items()) or "0",
    )


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [_line(head), _line(tuple("---" for _ in head)), *map(_line, rows)]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    hertz = next((line.split(":", 1)[1].strip() for line in info if line.startswith("cpu MHz")), "0")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{models[0]}, {len(models)} cores at {float(hertz) / 1000:.1f} GHz, Linux {platform.release()}, {python}"


def _versions() -> str:
    known = [f"{name} {version(name)}" for name in _PACKAGES]
    ask = "import importlib.metadata as m; print(m.version('litellm'))"
    if LiteLLM.python.exists():
        told = subprocess.run([LiteLLM.python, "-c", ask], capture_output=True, text=True, check=False)
        known.append(f"litellm {told.stdout.strip()}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return ", ".join([f"gateway at {commit.stdout.strip()}", *known])
