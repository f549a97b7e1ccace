"""Size of the default install, and the table of its dependencies."""

import re
from pathlib import Path

from benchmarks.dependencies import MAX_DEFAULT_MEGABYTES, measure_default_install, read_direct_requirements

PAGE = Path(__file__).parent.parent / "docs" / "dependencies.md"


def test_default_install_stays_below_its_stated_size() -> None:
    assert measure_default_install() / 1e6 < MAX_DEFAULT_MEGABYTES
    assert f"a test fails above {MAX_DEFAULT_MEGABYTES} MB" in PAGE.read_text()


def test_table_has_every_default_dependency() -> None:
    rows = re.findall(r"^\| ([\w.-]+) \| default \| [\d.]+ \| \d+ \| .+ \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [item.name for item in read_direct_requirements()]
