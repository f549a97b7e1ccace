"""Collect the pages of the documentation site in build/docs: `make docs`.

Pages stay where a reader of the repository looks for them (README.md, docs/, …), with links between those places. This
script copies them into one tree and rewrites the links. Linked files that are not pages are copied as well.
"""

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "build" / "docs"
PAGES_OUTSIDE_DOCS = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "benchmarks/RESULTS.md": "benchmarks/results.md",
    "examples/README.md": "examples.md",
}
NavEntries = str | list[dict[str, "NavEntries"]]
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
CODE_OR_LINK = re.compile(rf"`[^`\n]+`|{LINK.pattern}")
"""Code in a line, or a link, whose text may have code."""

FENCED_CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


class BrokenDocs(Exception):
    """Error of broken links or pages that no reader finds.

    `str()` has one line for each.
    """


def find_pages(root: Path = ROOT) -> dict[str, str]:
    """Map paths in the repository to paths in the site."""
    docs = {path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md")}
    return PAGES_OUTSIDE_DOCS | {path: path.removeprefix("docs/") for path in sorted(docs)}


def collect_pages(output: Path = OUTPUT, root: Path = ROOT) -> None:
    """Write all pages, and the files that they link to, below `output`.

    Raises:
        BrokenDocs: a link has no target, or the navigation lacks a page.
    """
    pages = find_pages(root)
    problems = list(_check_navigation(pages, root))
    shutil.rmtree(output, ignore_errors=True)
    for source, target in pages.items():
        page = output / target
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_rewrite_links(source, pages, output, root, problems))
    if problems:
        raise BrokenDocs("\n".join(problems))


def _check_navigation(pages: dict[str, str], root: Path) -> Iterator[str]:
    """List pages that the navigation lacks or that do not exist.

    Pages in a folder of docs/ are exempt: the folder's README.md, which must be listed, links to them.
    """
    listed = set(_iterate_listed_pages(tomllib.loads((root / "zensical.toml").read_text())["project"]["nav"]))
    for source, target in pages.items():
        if target not in listed and (target.count("/") == 0 or target.endswith("/README.md")):
            yield f"{source}: add {target} to `nav` in zensical.toml"
    yield from (f"zensical.toml: `nav` lists {page}, which does not exist" for page in listed - set(pages.values()))


def _iterate_listed_pages(entries: NavEntries) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
        return
    for entry in entries:
        yield from (page for value in entry.values() for page in _iterate_listed_pages(value))


def _rewrite_links(source: str, pages: dict[str, str], output: Path, root: Path, problems: list[str]) -> str:
    folder = PurePosixPath(pages[source]).parent

    def rewrite(match: re.Match[str]) -> str:
        text, link, anchor = match[1], match[2], match[3] or ""
        if link is None:
            return match[0]
        path = os.path.normpath(PurePosixPath(source).parent / link)
        target = root / path
        if target.is_dir() and f"{path}/README.md" in pages:
            path = f"{path}/README.md"
        elif target.is_dir():
            return text
        elif not target.exists():
            problems.append(f"{source}: the link {link} has no target")
            return text
        page = pages.get(path) or _copy_file(target, path, output)
        return f"[{text}]({os.path.relpath(page, folder)}{anchor})"

    parts = FENCED_CODE.split((root / source).read_text())
    return "".join(part if part.startswith("```") else CODE_OR_LINK.sub(rewrite, part) for part in parts)


def _copy_file(target: Path, path: str, output: Path) -> str:
    """Copy a file that is not a page.

    Return its path in the site. The path has no leading dots, because web servers hide such files.
    """
    copied = "files/" + "/".join(part.lstrip(".") for part in path.split("/"))
    (output / copied).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(target, output / copied)
    return copied


if __name__ == "__main__":
    try:
        collect_pages()
    except BrokenDocs as problems:
        sys.exit(str(problems))
