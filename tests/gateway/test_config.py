"""Tests of settings from the environment and the `.env` file."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from gateway.config import ConfigError, Settings, list_renamed_settings, load_settings
from gateway.mcp_client.server_config import ServerConfig
from gateway_console.settings import ConsoleSettings
from gateway_runtime.placeholders import is_placeholder
from gateway_runtime.renamed_settings import RenamedSetting
from tools_server.config import ConfigError as ToolsConfigError
from tools_server.config import Settings as ToolsSettings
from tools_server.config import load_settings as load_tools

EXAMPLE = Path(__file__).parent.parent.parent / ".env.example"


@pytest.fixture(autouse=True)
def clear_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*Settings.model_fields, *ToolsSettings.model_fields, "groq_model"):
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def format_value(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_env_example_lists_every_setting_with_its_default() -> None:
    documented = dict(re.findall(r"^# ([A-Z][A-Z0-9_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))
    fields = ConsoleSettings.model_fields | Settings.model_fields | ToolsSettings.model_fields
    assert documented == {name.upper(): format_value(field.default) for name, field in fields.items()}


def test_groq_default_model_overrides_groq_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().groq_default_model == "openai/gpt-oss-120b"
    monkeypatch.setenv("GROQ_MODEL", "old-name")
    assert load_settings().groq_default_model == "old-name"
    monkeypatch.setenv("GROQ_DEFAULT_MODEL", "new-name")
    assert load_settings().groq_default_model == "new-name"


@pytest.mark.parametrize(("timeout", "is_valid"), [(None, True), (1.0, True), (0.9, False)])
def test_heartbeat_timeout_is_at_least_two_heartbeats(timeout: float | None, is_valid: bool) -> None:
    expected = (
        nullcontext() if is_valid else pytest.raises(ConfigError, match=r"^HEARTBEAT_TIMEOUT_SECONDS: .* least 1,")
    )
    with expected:
        settings = load_settings(heartbeat_seconds=0.5, heartbeat_timeout_seconds=timeout)
        assert settings.heartbeat_timeout_seconds == timeout


@pytest.mark.parametrize(
    "url",
    [
        "https://api.groq.com",
        "https://api.groq.com/",
        "https://api.groq.com/openai/v1",
        "https://api.groq.com/openai/v1/",
    ],
)
def test_path_of_groq_base_url_is_removed(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GROQ_BASE_URL", url)
    assert load_settings().groq_base_url == "https://api.groq.com"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", "http://h:1/mcp"),
        ("http://h:1/", "http://h:1/mcp"),
        ("http://h:1/mcp", "http://h:1/mcp"),
        ("https://h/other/path", "https://h/other/path"),
    ],
)
def test_mcp_server_url_without_path_gets_the_default_path(
    monkeypatch: pytest.MonkeyPatch, url: str, expected: str
) -> None:
    monkeypatch.setenv("MCP_SERVER_URL", url)
    assert load_settings().mcp_server_url == expected


def test_database_url_overrides_postgres_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().postgres_url is None
    monkeypatch.setenv("POSTGRES_HOST", "db")
    monkeypatch.setenv("POSTGRES_PASSWORD", "p@ss/word")
    assert load_settings().postgres_url == "postgresql+asyncpg://postgres:p%40ss%2Fword@db:5432/agent_gateway"
    for url in ("postgres://u@h/d", "postgresql://u@h/d", "postgresql+asyncpg://u@h/d"):
        monkeypatch.setenv("DATABASE_URL", url)
        assert load_settings().postgres_url == "postgresql+asyncpg://u@h/d"


def test_several_hosts_of_postgres_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "a, b")
    monkeypatch.setenv("POSTGRES_PORT", "6432")
    assert load_settings().postgres_url == "postgresql+asyncpg://postgres@a:6432,b:6432/agent_gateway"
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@a:1,b:2/d?target_session_attrs=any")
    assert load_settings().postgres_url == "postgresql+asyncpg://u:p@a:1,b:2/d?target_session_attrs=any"


@pytest.mark.parametrize("url", ["postgresql://u@h:five/d", "mysql://u@h/d", "h:5432"])
def test_invalid_database_url_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ConfigError, match="DATABASE_URL: must be a PostgreSQL URL"):
        load_settings()


def test_placeholder_password_is_refused_for_any_remote_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:changeme@localhost,db.example.com/d")
    with pytest.raises(ConfigError, match="its password is a placeholder"):
        load_settings()


def test_statement_timeout_must_be_shorter_than_the_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT_SECONDS", "8")
    with pytest.raises(ConfigError, match="DATABASE_STATEMENT_TIMEOUT_SECONDS: must be shorter"):
        load_settings()
    monkeypatch.setenv("DATABASE_SILENCE_TIMEOUT_SECONDS", "0")
    assert load_settings().database_statement_timeout_seconds == 8


def test_list_settings_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "http://a, http://b,")
    assert load_settings().cors_origins == ("http://a", "http://b")


def test_environment_overrides_the_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AGENT_TIMEOUT=30\nGATEWAY_PORT=9000\nSOMETHING_ELSE=1\nGROQ_TEMPERATURE=\n")
    monkeypatch.setenv("GATEWAY_PORT", "9001")
    settings = load_settings()
    assert (settings.agent_timeout, settings.gateway_port, settings.groq_temperature) == (30, 9001, None)


def test_all_invalid_settings_are_reported_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "lots")
    monkeypatch.setenv("DATABASE_URL", "mysql://me:hunter2@h/d")
    with pytest.raises(ConfigError) as error:
        load_settings()
    assert str(error.value).splitlines() == [
        "GATEWAY_PORT: Input should be a valid integer, unable to parse string as an integer",
        "DATABASE_URL: must be a PostgreSQL URL such as postgresql://user:password@host:5432/database",
    ]


def test_repr_of_settings_contains_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk_secret")
    monkeypatch.setenv("API_KEY", "key-secret-of-mine")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@h/d")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@h")
    monkeypatch.setenv("TOOLS_SERVER_SECRET", "signs-secret")
    text = repr(load_settings()) + repr(load_tools())
    for secret in ("gsk_secret", "key-secret", "hunter2", "signs-secret"):
        assert secret not in text


def test_repr_of_mcp_server_config_contains_no_secrets() -> None:
    text = repr(ServerConfig(name="x", url="https://x", headers={"A": "hunter2"}, env={"KEY": "hunter2"}))
    assert "hunter2" not in text


@pytest.mark.parametrize("secret", ["changeme", "change-me-now", "<secret>", "xxxx", "your-secret", "secret", "..."])
def test_tool_server_rejects_a_placeholder_secret(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("TOOLS_SERVER_SECRET", secret)
    with pytest.raises(ToolsConfigError, match="TOOLS_SERVER_SECRET: is a placeholder"):
        load_tools()


@pytest.mark.parametrize(
    ("old", "new", "value", "expected"),
    [
        ("MODEL_PATIENCE", "MODEL_RETRY_MAX_WAIT", "3", 3.0),
        ("GROQ_RECORD", "MODEL_RECORD_DIR", "recorded", Path("recorded")),
        ("GATEWAY_LIFELINE", "GATEWAY_PARENT_FD", "stdin", 0),
    ],
)
def test_old_setting_name_works_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, value: str, expected: object
) -> None:
    assert list_renamed_settings() == []
    monkeypatch.setenv(old, value)
    assert getattr(load_settings(), new.lower()) == expected
    assert list_renamed_settings() == [RenamedSetting(old, new)]
    monkeypatch.setenv(new, "0")
    assert getattr(load_settings(), new.lower()) in (0, Path("0"))
    assert list_renamed_settings() == []


@pytest.mark.parametrize("load", [load_settings, load_tools])
def test_lifeline_that_the_last_release_ignored_is_ignored(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[], Settings | ToolsSettings]
) -> None:
    monkeypatch.setenv("GATEWAY_LIFELINE", "off")
    assert load().gateway_parent_fd is None
    monkeypatch.setenv("GATEWAY_LIFELINE", "0")
    assert load().gateway_parent_fd is None
    monkeypatch.setenv("GATEWAY_PARENT_FD", "off")
    with pytest.raises((ConfigError, ToolsConfigError), match=r"^GATEWAY_PARENT_FD: Input should be a valid integer"):
        load()


def test_old_setting_name_in_the_env_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MODEL_PATIENCE=3\n")
    assert load_settings().model_retry_max_wait == 3.0
    assert list_renamed_settings() == [RenamedSetting("MODEL_PATIENCE", "MODEL_RETRY_MAX_WAIT")]


@pytest.mark.parametrize(
    "key", ["gsk_<...>", "gsk_<your key>", "<key>", "gsk_...", "gsk_xxxx", "gsk_your_api_key", "gsk-your-key-here"]
)
def test_advice_for_a_placeholder_key_fits_the_provider(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("GROQ_API_KEY", key)
    with pytest.raises(ConfigError, match="GROQ_API_KEY: is a placeholder") as raised:
        load_settings()
    assert "console.groq.com" in str(raised.value)
    assert "openssl" not in str(raised.value)
    assert "simulated" in str(raised.value)


@pytest.mark.parametrize("password", ["p<a>ss!", "a<b", "x>y<z"])
def test_password_with_angle_brackets_is_no_placeholder(password: str) -> None:
    assert not is_placeholder(password)


def test_dev_stands_for_development_servers_beside_other_origins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "dev,https://app.example.com")
    origins = load_settings().cors_origins
    assert {"http://localhost:3000", "http://127.0.0.1:5173", "https://app.example.com"} <= set(origins)
    assert "dev" not in origins
