"""Format results as a Markdown page."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from benchmarks.gateway_only import SummaryLine
from benchmarks.processes import ROOT
from benchmarks.subjects import LiteLLM, Subject
from benchmarks.workloads import WorkloadResult

_PACKAGES = ("aiohttp", "fastapi", "groq", "mcp", "msgspec", "sqlmodel", "sse-starlette", "uvicorn", "uvloop")
_COLUMNS = (
    *("workload", "server", "CPU µs/token", "ratio", "CPU ms/request", "Postgres ms/request"),
    *("first token ms p50", "p99", "between tokens ms p50", "p99", "tokens/s", "MB", "errors"),
)


def format_page(
    results: list[WorkloadResult], lines: list[SummaryLine], subjects: list[Subject], skipped: list[str]
) -> str:
    return "\n".join(
        [
            "# Results",
            "",
            "Written by `make bench`. All servers were measured in one run; [README.md](README.md) explains the terms.",
            "CPU: processes of the server without Postgres. Ratio: to the gateway's CPU. MB: peak resident memory.",
            "Absolute figures depend on the machine and on what else runs there: compare figures of one run.",
            "",
            f"Machine: {describe_machine()}.",
            f"Versions: {_describe_versions()}.",
            "",
            *format_results(results),
            "",
            "Figures of the gateway alone:",
            "",
            *_format_table(
                ("measurement", "figure", "target"), [(line.label, line.figure, line.target) for line in lines]
            ),
            "",
            "The servers:",
            "",
            *(f"- **{subject.name}**: {subject.description}." for subject in subjects),
            *(f"- {reason}" for reason in skipped),
            "",
        ]
    )


def format_results(results: list[WorkloadResult]) -> list[str]:
    """Format one row per workload and server.

    The ratio is that of CPU time per token.
    """
    base = {result.workload.name: result for result in results if result.subject == "gateway"}
    return _format_table(_COLUMNS, [_format_row(result, base.get(result.workload.name)) for result in results])


def _format_row(result: WorkloadResult, base: WorkloadResult | None) -> tuple[str, ...]:
    stream = result.workload.stream
    ratio = (
        f"{result.cpu_us_per_token / base.cpu_us_per_token:.2f}" if base is not None and base.cpu_us_per_token else ""
    )
    return (
        result.workload.name,
        result.subject,
        f"{result.cpu_us_per_token:.1f}",
        ratio,
        f"{result.cpu_ms_per_request:.2f}",
        f"{result.postgres_ms_per_request:.2f}" if result.postgres_seconds else "",
        f"{result.compute_first_token_ms(50):.1f}",
        f"{result.compute_first_token_ms(99):.1f}",
        f"{result.compute_gap_ms(50):.1f}" if stream else "",
        f"{result.compute_gap_ms(99):.1f}" if stream else "",
        f"{result.tokens_per_second:,.0f}",
        f"{result.resident_bytes / 1e6:.0f}",
        ", ".join(f"{reason}: {number}" for reason, number in result.errors.items()) or "0",
    )


def _format_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [_format_cells(head), _format_cells(tuple("---" for _ in head)), *map(_format_cells, rows)]


def _format_cells(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def describe_machine() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    hertz = next((line.split(":", 1)[1].strip() for line in info if line.startswith("cpu MHz")), "0")
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{models[0]}, {len(models)} cores at {float(hertz) / 1000:.1f} GHz, Linux {platform.release()}, {python}"


def _describe_versions() -> str:
    versions = [f"{name} {version(name)}" for name in _PACKAGES]
    print_version = "import importlib.metadata as m; print(m.version('litellm'))"
    if LiteLLM.python.exists():
        litellm = subprocess.run([LiteLLM.python, "-c", print_version], capture_output=True, text=True, check=False)
        versions.append(f"litellm {litellm.stdout.strip()}")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return ", ".join([f"gateway at {commit.stdout.strip()}", *versions])
