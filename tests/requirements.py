"""Programs that tests need beside Python and the project's packages."""

import os

import pytest


def require(is_present: bool, requirement: str) -> pytest.MarkDecorator:
    """Skip a test where something is missing, unless CI is set."""
    return pytest.mark.skipif("CI" not in os.environ and not is_present, reason=f"needs {requirement}")
