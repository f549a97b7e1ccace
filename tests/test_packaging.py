"""Tests of the contents of packages, image and bundle."""

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
