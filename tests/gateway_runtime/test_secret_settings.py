"""Tests of secrets that end with a line end."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway.config import ConfigError, Settings
from gateway.config import load_settings as load_gateway
from gateway.store.encryption import Cipher, load_encryption_secrets
from tools_server.config import Settings as ToolsSettings
from tools_server.config import load_settings as load_tools

SECRET = "a-secret-of-the-operator-0123456789"


def list_secrets(model: type[Settings] | type[ToolsSettings]) -> list[str]:
    return [
        name
        for name, field in model.model_fields.items()
        if field.annotation == SecretStr | None and name != "redis_url"
    ]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", list_secrets(Settings))
def test_secret_of_the_gateway_loses_its_line_end(monkeypatch: pytest.MonkeyPatch, name: str, line_end: str) -> None:
    monkeypatch.setenv(name.upper(), f"{SECRET}{line_end}")
    monkeypatch.setenv("JWT_ISSUER", "issuer")
    monkeypatch.setenv("JWT_AUDIENCE", "audience")
    monkeypatch.setenv("GATEWAY_TLS_CERT_FILE", "cert.pem")
    monkeypatch.setenv("GATEWAY_TLS_KEY_FILE", "key.pem")
    assert getattr(load_gateway(_env_file=None), name).get_secret_value() == SECRET


@pytest.mark.parametrize("name", list_secrets(ToolsSettings))
def test_secret_of_the_tool_server_loses_its_line_end(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name.upper(), f"{SECRET}\n")
    assert getattr(load_tools(_env_file=None), name).get_secret_value() == SECRET


def test_url_with_a_password_loses_its_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:p@h/0\n")
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@127.0.0.1/d\r\n")
    settings = load_gateway(_env_file=None)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://:p@h/0"
    assert settings.postgres_url == "postgresql+asyncpg://u:p@127.0.0.1/d"


def test_other_white_space_belongs_to_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", f" {SECRET} \n")
    key = load_gateway(_env_file=None).api_key
    assert key is not None
    assert key.get_secret_value() == f" {SECRET} "


@pytest.mark.parametrize("name", ["API_KEY", "GROQ_API_KEY", "DATABASE_URL"])
def test_secret_that_is_only_a_line_end_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "\n")
    with pytest.raises(ConfigError, match=f"^{name}: has only a line end$"):
        load_gateway(_env_file=None)


def test_stored_tokens_are_readable_after_an_encryption_key_lost_its_line_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Earlier releases derived the key with the line end."""
    sealed = Cipher(f"{SECRET}\n").encrypt(b"a token")
    monkeypatch.setenv("GATEWAY_ENCRYPTION_KEY", f"{SECRET}\n")
    monkeypatch.setenv("GATEWAY_ENCRYPTION_OLD_KEYS", "an-older-key-of-the-operator")
    settings = load_gateway(_env_file=None, gateway_data_dir=tmp_path)
    cipher = Cipher(*load_encryption_secrets(settings))
    assert cipher.decrypt(sealed) == b"a token"
    assert Cipher(SECRET).decrypt(cipher.encrypt(b"new")) == b"new"
