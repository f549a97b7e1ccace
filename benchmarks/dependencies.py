"""`python -m benchmarks.dependencies`: measure the dependencies for `docs/dependencies.md`.

Prints a table row for each direct dependency: megabytes on disk, and milliseconds of its imports when `agent-gateway
serve` starts, each with the packages that only it needs.
"""

import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MAX_DEFAULT_MEGABYTES = 345
_RUNS = 10
_IMPORTED = re.compile(r"^import time: +(\d+) \| +\d+ \|( *)([\w.]+)$", re.MULTILINE)


def read_direct_requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"]]


def collect_closure(requirements: list[Requirement]) -> set[str]:
    """Collect the names of all installed packages that requirements need."""
    found: set[str] = set()
    waiting = [(canonicalize_name(item.name), frozenset(item.extras)) for item in requirements if _applies(item, "")]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        found.add(name)
        for line in metadata.requires(name) or []:
            item = Requirement(line)
            if not any(_applies(item, extra) for extra in ("", *extras)):
                continue
            entry = (canonicalize_name(item.name), frozenset(item.extras))
            if entry not in seen:
                seen.add(entry)
                waiting.append(entry)
    return found


def _applies(item: Requirement, extra: str) -> bool:
    return item.marker is None or item.marker.evaluate({"extra": extra})


def measure_bytes(name: str) -> int:
    """Measure the installed files of a package, without byte code."""
    distribution = metadata.distribution(name)
    paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or [] if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file())


def measure_default_install() -> int:
    return sum(map(measure_bytes, collect_closure(read_direct_requirements())))


def measure_import_times() -> dict[str, float]:
    """Measure the milliseconds of each top-level module's own imports.

    Each module counts with its fastest run, because other load can only delay it.
    """
    command = [sys.executable, "-X", "importtime", "-c", "import gateway.app"]
    fastest: dict[str, int] = {}
    for _ in range(_RUNS):
        output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr
        for microseconds, _, module in _IMPORTED.findall(output):
            fastest[module] = min(int(microseconds), fastest.get(module, sys.maxsize))
    times: dict[str, float] = defaultdict(float)
    for module, microseconds in fastest.items():
        times[module.partition(".")[0]] += microseconds / 1e3
    return times


def main() -> None:
    modules = metadata.packages_distributions()
    times: dict[str, float] = defaultdict(float)
    for module, milliseconds in measure_import_times().items():
        for name in modules.get(module, [])[:1]:
            times[canonicalize_name(name)] += milliseconds
    requirements = read_direct_requirements()
    for item in requirements:
        rest = collect_closure([other for other in requirements if other is not item])
        own = (collect_closure([item]) - rest) | {canonicalize_name(item.name)}
        size, duration = sum(map(measure_bytes, own)) / 1e6, sum(times[name] for name in own)
        print(f"| {item.name} | default | {size:.1f} | {duration:.0f} | all |")
    print(f"default install: {measure_default_install() / 1e6:.0f} MB, {len(collect_closure(requirements))} packages")


if __name__ == "__main__":
    main()
