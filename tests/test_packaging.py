"""Tests of the contents of packages, image and bundle."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["uv"]["build-backend"]["module-name"]


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
