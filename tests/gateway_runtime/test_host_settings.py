"""Tests of host names and origins in settings."""

import pytest

from gateway.config import ConfigError
from gateway.config import load_settings as load_gateway
from gateway_runtime.settings.hosts import normalize_host_pattern, normalize_origin
from tools_server.config import ConfigError as ToolsConfigError
from tools_server.config import load_settings as load_tools


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("https://app.example.com/", "https://app.example.com"),
        ("HTTPS://App.Example.COM", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80/", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("http://localhost:3000/", "http://localhost:3000"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_origin_has_the_form_that_browsers_send(text: str, origin: str) -> None:
    assert normalize_origin(text) == origin
    assert load_gateway(_env_file=None, cors_origins=f" {text} ,").cors_origins == (origin,)
    assert load_tools(_env_file=None, tools_server_allowed_origins=text).tools_server_allowed_origins == (origin,)


@pytest.mark.parametrize(
    "text",
    [
        "localhost:3000",
        "app.example.com",
        "https://app.example.com/path",
        "https://app.example.com?x=1",
        "https://user@app.example.com",
        "https://*.example.com",
        "https://",
        "https://app.example.com:port",
        "https://app.example.com:99999",
        "https://a b.example.com",
        "http://a http://b",
        "//app.example.com",
        "https://[::1",
    ],
)
def test_origin_that_no_browser_sends_is_one_line_at_the_start(text: str) -> None:
    for load, error, name in (
        (load_gateway, ConfigError, "cors_origins"),
        (load_tools, ToolsConfigError, "tools_server_allowed_origins"),
    ):
        with pytest.raises(error, match=f"^{name.upper()}: ") as refused:
            load(_env_file=None, **{name: f"http://localhost:3000,{text}"})
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("gateway.example.com", "gateway.example.com"),
        ("Gateway.Example.COM", "gateway.example.com"),
        ("gateway.example.com:8000", "gateway.example.com"),
        ("https://gateway.example.com/", "gateway.example.com"),
        ("https://gateway.example.com:8443", "gateway.example.com"),
        ("gateway.example.com.", "gateway.example.com"),
        ("*.example.com", "*.example.com"),
        ("*", "*"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("[::1]:8000", "[::1]"),
        ("http://[::1]:8000/", "[::1]"),
        ("192.168.0.7:8000", "192.168.0.7"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("my_service", "my_service"),
    ],
)
def test_trusted_host_has_the_form_that_is_compared(text: str, pattern: str) -> None:
    assert normalize_host_pattern(text) == pattern
    assert load_gateway(_env_file=None, trusted_hosts=text).trusted_hosts == (pattern,)


@pytest.mark.parametrize(
    "text", [".example.com", "gateway.example.com/path", "a b", "user@host", "host:port", "host:99999", "[::1", "a..b"]
)
def test_host_that_no_client_sends_is_one_line_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^TRUSTED_HOSTS: ") as refused:
        load_gateway(_env_file=None, trusted_hosts=text)
    assert "\n" not in str(refused.value)
    with pytest.raises(ToolsConfigError, match=r"^TOOLS_SERVER_ALLOWED_HOSTS: "):
        load_tools(_env_file=None, tools_server_allowed_hosts=text)


@pytest.mark.parametrize(
    ("text", "host"),
    [("HTTP://Tools:8001/", "tools:8001"), ("tools", "tools"), ("tools:*", "tools:*"), ("::1", "[::1]")],
)
def test_allowed_host_of_the_tool_server_keeps_its_port(text: str, host: str) -> None:
    assert load_tools(_env_file=None, tools_server_allowed_hosts=text).tools_server_allowed_hosts == (host,)


def test_json_list_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", '["http://a/", "http://b"]')
    monkeypatch.setenv("TRUSTED_HOSTS", "[::1],a")
    settings = load_gateway(_env_file=None)
    assert settings.cors_origins == ("http://a", "http://b")
    assert settings.trusted_hosts == ("[::1]", "a")


@pytest.mark.parametrize(
    ("url", "path", "public_url", "root_path"),
    [
        ("https://gw.example.com", "", "https://gw.example.com", ""),
        ("https://GW.example.com:443/", "", "https://gw.example.com", ""),
        ("https://example.com/gw/", "", "https://example.com/gw", "/gw"),
        ("https://example.com/a/gw", "/a/gw", "https://example.com/a/gw", "/a/gw"),
        ("https://example.com", "gw/", "https://example.com/gw", "/gw"),
        (None, "/gw", "http://127.0.0.1:8000/gw", "/gw"),
        (None, "/", "http://127.0.0.1:8000", ""),
    ],
)
def test_public_url_and_root_path_complete_each_other(
    url: str | None, path: str, public_url: str, root_path: str
) -> None:
    settings = load_gateway(_env_file=None, gateway_public_url=url, gateway_root_path=path)
    assert (settings.public_url, settings.root_path) == (public_url, root_path)


@pytest.mark.parametrize(
    ("url", "path", "name"),
    [
        ("gw.example.com", "", "GATEWAY_PUBLIC_URL"),
        ("https://gw.example.com/?x=1", "", "GATEWAY_PUBLIC_URL"),
        ("https://gw.example.com/a/../b", "", "GATEWAY_PUBLIC_URL"),
        ("https://user:s3cret@gw.example.com", "", "GATEWAY_PUBLIC_URL"),
        ("https://gw.example.com/a", "/b", "GATEWAY_ROOT_PATH"),
        (None, "/a b", "GATEWAY_ROOT_PATH"),
        (None, "/a//b", "GATEWAY_ROOT_PATH"),
    ],
)
def test_invalid_public_url_or_root_path_is_refused(url: str | None, path: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: ") as refused:
        load_gateway(_env_file=None, gateway_public_url=url, gateway_root_path=path)
    assert "s3cret" not in str(refused.value)
