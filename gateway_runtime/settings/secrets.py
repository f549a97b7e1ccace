"""Secrets in settings, as files and secret managers deliver them."""

import os
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from gateway_runtime.errors import ConfigError

_URLS_WITH_PASSWORDS = ("database_url", "database_direct_url")
_LINE_ENDS = "\r\n"


class SecretFileSource(PydanticBaseSettingsSource):
    """Reads secrets from the files that variables such as REDIS_URL_FILE name.

    Secrets of Docker and Kubernetes are files. A variable with the secret itself has precedence.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the secret of a field.

        Raises:
            ConfigError: the file cannot be read.
        """
        variable = f"{field_name}_file"
        file = os.environ.get(variable.upper())
        is_setting = variable in self.settings_cls.model_fields
        if not file or is_setting or not _is_secret(field_name, field.annotation):
            return None, field_name, False
        try:
            return Path(file).read_text(), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{variable.upper()}: cannot read {file}: {type(error).__name__}") from None

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields.items()
        values = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {name: value for name, value in values.items() if value is not None}


class SecretSettings(BaseSettings):
    """Settings whose secrets lose a last line end.

    `kubectl create secret --from-file`, `echo` and editors add one.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = SecretFileSource(settings_cls)
        return (init_settings, env_settings, dotenv_settings, files, file_secret_settings)

    @field_validator("*", mode="before")
    @classmethod
    def _strip_line_end(cls, value: object, info: ValidationInfo) -> object:
        name = info.field_name or ""
        if not isinstance(value, str) or not _is_secret(name, cls.model_fields[name].annotation):
            return value
        stripped = value.rstrip(_LINE_ENDS)
        if value and not stripped:
            raise ValueError("has only a line end")
        return stripped


def has_line_end(value: object) -> bool:
    """Return whether a secret ends with a line end."""
    return isinstance(value, str) and value.endswith(tuple(_LINE_ENDS))


def _is_secret(name: str, annotation: Any) -> bool:
    return (
        name in _URLS_WITH_PASSWORDS
        or annotation is SecretStr
        or any(_is_secret("", inner) for inner in get_args(annotation))
    )
