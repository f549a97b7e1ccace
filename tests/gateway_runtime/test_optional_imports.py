"""Packages that a gateway without optional features does not load."""

import subprocess
import sys

import pytest

_UNUSED = ("aiohttp", "jwt", "httpx_aiohttp", "pygments", "rich")
_PROGRAM = f"""
import importlib, sys
import gateway.cli.main, gateway.app, gateway.llm.providers.groq, gateway.llm.providers.openai
print(*[name for name in {_UNUSED} if name in sys.modules])
for name in {_UNUSED}:
    importlib.import_module(name)
"""


@pytest.mark.faults
def test_gateway_loads_no_package_of_optional_features_but_can_do_so_later() -> None:
    result = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
