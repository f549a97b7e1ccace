import pytest

from tools_server.config import ConfigError, load_settings


@pytest.mark.parametrize(
    ("database_url", "asyncpg_url"),
    [
        ("postgres://u:p@host:5433/db", "postgresql+asyncpg://u:p@host:5433/db"),
        ("postgresql://u@host/db", "postgresql+asyncpg://u@host/db"),
        ("postgresql+asyncpg://u@host/db", "postgresql+asyncpg://u@host/db"),
        ("postgresql+psycopg://u@host/db", "postgresql+asyncpg://u@host/db"),
        ("postgresql://postgres@/db?host=/run/pg", "postgresql+asyncpg://postgres@/db?host=/run/pg"),
        ("postgresql://u@a:1,b:2/db", "postgresql+asyncpg://u@a:1,b:2/db"),
    ],
)
def test_database_url_is_made_fit_for_asyncpg(database_url: str, asyncpg_url: str) -> None:
    assert load_settings(_env_file=None, database_url=database_url).postgres_url == asyncpg_url


def test_postgres_variables_make_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "db", "USER": "me", "PASSWORD": "p@ss/word", "DB": "things"}.items():
        monkeypatch.setenv(f"POSTGRES_{name}", value)
    assert load_settings(_env_file=None).postgres_url == "postgresql+asyncpg://me:p%40ss%2Fword@db:5432/things"


def test_list_settings_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLS_SERVER_ALLOWED_HOSTS", "tools:8001, tools.internal ,")
    assert load_settings(_env_file=None).tools_server_allowed_hosts == ("tools:8001", "tools.internal")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("tools", False)],
)
def test_only_loopback_is_on_loopback(host: str, loopback: bool) -> None:
    assert load_settings(_env_file=None, tools_server_host=host).on_loopback is loopback


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://x/y"),
        ("DATABASE_URL", "postgresql://u:secret@host:port/db"),
        ("DATABASE_URL", "nonsense"),
        ("TOOLS_SERVER_PORT", "many"),
        ("TOOLS_SERVER_PORT", "70000"),
        ("SEARCH_BACKEND", "altavista"),
        ("SEARXNG_URL", "searx"),
        ("LOG_LEVEL", "loud"),
        ("DEBUG", "perhaps"),
    ],
)
def test_broken_value_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as broken:
        load_settings(_env_file=None)
    assert str(broken.value).startswith(f"{name}: ")
    assert "\n" not in str(broken.value)
    assert "secret" not in str(broken.value)


@pytest.mark.parametrize(
    ("backend", "name"), [("tavily", "TAVILY_API_KEY"), ("brave", "BRAVE_API_KEY"), ("searxng", "SEARXNG_URL")]
)
def test_search_engine_needs_its_key_or_address(backend: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: must be set"):
        load_settings(_env_file=None, search_backend=backend)
