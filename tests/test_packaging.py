"""Tests of the contents of packages, image and bundle."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
PACKAGES = WHEEL["packages"]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_declares_its_type_annotations(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("path", [*PACKAGES, *PROJECT["project"]["license-files"]])
def test_image_and_bundle_contain_packages_and_license(path: str) -> None:
    """Compare image and bundle with the packages of the project.

    The build of both fails if a package or the license is missing.
    """
    assert f" {path} " in (ROOT / "Dockerfile").read_text()
    assert f'"{path}"' in (ROOT / "packaging" / "mcpb.py").read_text()


@pytest.mark.parametrize(("environment", "code"), [({"CI": "true"}, 1), ({}, 0)], ids=["ci", "elsewhere"])
def test_previous_release_fails_only_in_ci_if_the_clone_lacks_its_commit(
    tmp_path: Path, environment: dict[str, str], code: int
) -> None:
    for path in ("packaging/previous_release.py", "tests/upgrade/previous.txt"):
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(ROOT / path, tmp_path / path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    process = subprocess.run(
        [sys.executable, tmp_path / "packaging" / "previous_release.py", "uv", "python3"],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == code
    assert "this clone lacks the commit" in process.stdout + process.stderr
    assert not (tmp_path / ".upgrade").exists()


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_workflow_runs_targets_that_exist_and_pins_its_actions(workflow: Path) -> None:
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]) for step in steps if "uses" in step)
    scripts = "\n".join(step["run"] for step in steps if "run" in step)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {
        word for line in re.findall(r"make (.+)", scripts) for word in line.split("#")[0].split() if "=" not in word
    }
    assert called <= targets
    assert ".ci/run" in scripts


def test_release_publishes_wheel_image_and_bill_of_materials() -> None:
    jobs: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    scripts = "\n".join(step["run"] for job in jobs.values() for step in job["steps"] if "run" in step)
    for part in ("make wheel sbom", "build/dist/*.whl", "build/sbom.json", "docker buildx build --push --sbom=true"):
        assert part in scripts
    image_needs = jobs["image"]["needs"]
    assert image_needs == "packages"  # which runs the tests


@pytest.mark.parametrize(("tag", "code"), [("v{}", 0), ("{}", 2), ("v9.9.9", 2)])
def test_release_refuses_a_tag_that_is_not_the_version(tag: str, code: int) -> None:
    name = tag.format(PROJECT["project"]["version"])
    done = subprocess.run(
        ["make", "--no-print-directory", "release-version", f"TAG={name}", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert code == 0 or f"{name} is not v" in done.stderr


def test_make_help_lists_every_target() -> None:
    """`make help` alone tells a newcomer what there is."""
    makefile = (ROOT / "Makefile").read_text()
    declared = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split())  # pyright: ignore
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    listed = dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert (done.returncode, done.stderr) == (0, "")
    assert set(listed) == declared
