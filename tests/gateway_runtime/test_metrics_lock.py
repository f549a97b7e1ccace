"""Test of the lock of the workers' figures."""

import os
from pathlib import Path

import pytest

from gateway_runtime.telemetry.metrics import Metrics


def test_other_users_cannot_hold_the_lock_of_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may read a file may lock it."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    before = os.umask(0)
    try:
        Metrics([]).render()
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
