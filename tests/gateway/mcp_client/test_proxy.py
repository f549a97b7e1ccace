"""Tests of the proxy that the environment names."""

import pytest

from gateway.mcp_client.http.proxy import find_proxy

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://mcp.example.com/mcp", "http://one:1"),
        ("https://mcp.example.com/mcp", "http://two:2"),
        ("https://inside.test/mcp", None),
        ("http://deep.inside.test:8000/mcp", None),
        ("http://10.1.2.3/mcp", None),
        ("http://localhost:8001/mcp", None),
    ],
)
def test_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, url: str, expected: str | None) -> None:
    values = ("http://one:1", "http://two:2", "", "inside.test,localhost,10.0.0.0/8")
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, value)
    assert find_proxy(url) == expected
