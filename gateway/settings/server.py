"""Settings of the process: its address, certificate, workers and logs."""

import re
import sys
from pathlib import Path
from typing import Annotated, Self
from uuid import UUID

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings

from gateway_runtime.errors import ConfigError
from gateway_runtime.renamed_settings import read_parent_fd
from gateway_runtime.settings.hosts import find_bind_host, normalize_origin
from gateway_runtime.tls import TlsFiles
from gateway_runtime.trusted_certificates import check_certificate_variables

_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-])*")


def _split_origin(url: str) -> tuple[str, str]:
    """Split a URL into origin and path, without a trailing slash."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host}", f"{slash}{path}".rstrip("/")


class ServerSettings(BaseSettings):
    """Settings of the process: its address, certificate, workers and logs."""

    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8000, ge=0, le=65535)
    gateway_bind: str | None = None
    gateway_data_dir: Path = Path(".data")
    gateway_public_url: str | None = None
    gateway_root_path: str = ""
    gateway_keep_alive_seconds: float = Field(default=75.0, gt=0, le=3_600)
    gateway_tls_cert_file: Path | None = None
    gateway_tls_key_file: Path | None = None
    gateway_tls_key_password: SecretStr | None = None
    gateway_workers: int = Field(
        default=1, ge=1, le=64, validation_alias=AliasChoices("GATEWAY_WORKERS", "WEB_CONCURRENCY")
    )
    gateway_parent_fd: Annotated[int | None, BeforeValidator(read_parent_fd)] = Field(
        default=None, ge=0, validation_alias=AliasChoices("GATEWAY_PARENT_FD", "GATEWAY_LIFELINE")
    )
    gateway_worker_id: UUID | None = None
    shutdown_grace_seconds: float = Field(default=4.0, ge=0, le=300)
    log_json: bool | None = None
    log_level: str = "INFO"
    debug: bool = False

    @field_validator("gateway_public_url")
    @classmethod
    def _validate_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = value.strip()
        origin, path = _split_origin(value)
        if not value.lower().startswith(("http://", "https://")) or not _ROOT_PATH.fullmatch(path):
            raise ValueError("must be a URL such as https://gateway.example.com or https://example.com/gateway")
        return f"{normalize_origin(origin)}{path}"

    @field_validator("gateway_root_path")
    @classmethod
    def _normalize_root_path(cls, value: str) -> str:
        path = f"/{value.strip().strip('/')}".rstrip("/")
        if not _ROOT_PATH.fullmatch(path):
            raise ValueError("must be a path such as /gateway")
        return path

    @model_validator(mode="after")
    def _validate_trusted_certificates(self) -> Self:
        try:
            check_certificate_variables()
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _validate_root_path(self) -> Self:
        path = _split_origin(self.gateway_public_url or "")[1]
        if path and self.gateway_root_path and path != self.gateway_root_path:
            raise ValueError(
                f"GATEWAY_ROOT_PATH: GATEWAY_PUBLIC_URL has the path {path}: set one of them, or both alike"
            )
        return self

    @model_validator(mode="after")
    def _validate_certificate_and_key(self) -> Self:
        has_certificate, has_key = self.gateway_tls_cert_file is not None, self.gateway_tls_key_file is not None
        if has_key and not has_certificate:
            raise ValueError("GATEWAY_TLS_CERT_FILE: must be set because GATEWAY_TLS_KEY_FILE is")
        if has_certificate and not has_key:
            raise ValueError("GATEWAY_TLS_KEY_FILE: must be set because GATEWAY_TLS_CERT_FILE is")
        if self.gateway_tls_key_password is not None and not has_key:
            raise ValueError("GATEWAY_TLS_KEY_PASSWORD: there is no GATEWAY_TLS_KEY_FILE to decrypt")
        return self

    @field_validator("log_level")
    @classmethod
    def _normalize_log_level(cls, value: str) -> str:
        if value.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
            raise ValueError("must be DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return value.upper()

    @property
    def tls_files(self) -> TlsFiles | None:
        """The certificate and key for https; None for plain http."""
        if self.gateway_tls_cert_file is None or self.gateway_tls_key_file is None:
            return None
        password = self.gateway_tls_key_password.get_secret_value() if self.gateway_tls_key_password else None
        return TlsFiles(self.gateway_tls_cert_file, self.gateway_tls_key_file, password, "GATEWAY_TLS")

    @property
    def public_url(self) -> str:
        """The gateway's URL for browsers, without a trailing slash."""
        return f"{self.public_origin or self.local_url}{self.root_path}"

    @property
    def public_origin(self) -> str | None:
        """The origin of the gateway's own pages at GATEWAY_PUBLIC_URL."""
        return None if self.gateway_public_url is None else _split_origin(self.gateway_public_url)[0]

    @property
    def root_path(self) -> str:
        """The prefix of all paths for browsers, from GATEWAY_ROOT_PATH or GATEWAY_PUBLIC_URL."""
        return self.gateway_root_path or _split_origin(self.gateway_public_url or "")[1]

    @property
    def local_host(self) -> str:
        """The host name that reaches the gateway from this machine."""
        return "127.0.0.1" if self.gateway_host in ("0.0.0.0", "::") else self.gateway_host  # noqa: S104

    @property
    def local_url(self) -> str:
        """The gateway's URL for this machine."""
        host = f"[{self.local_host}]" if ":" in self.local_host else self.local_host
        return f"{'https' if self.gateway_tls_cert_file else 'http'}://{host}:{self.gateway_port}"

    @property
    def bind_host(self) -> str | None:
        """The host part of GATEWAY_BIND; None without it.

        A container's port is published at that address of its host.
        """
        if self.gateway_bind is None:
            return None
        return find_bind_host(self.gateway_bind)

    @property
    def published_url(self) -> str:
        """The URL at GATEWAY_BIND, else the local one."""
        if self.gateway_bind is None or self.bind_host is None:
            return self.local_url
        host = "127.0.0.1" if self.bind_host in ("0.0.0.0", "::") else self.bind_host  # noqa: S104
        scheme = "https" if self.gateway_tls_cert_file else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.gateway_bind.rpartition(':')[2]}"

    @property
    def json_logs(self) -> bool:
        """Return whether logs are JSON.

        LOG_JSON decides; by default, logs are JSON unless standard error is a terminal.
        """
        return not sys.stderr.isatty() if self.log_json is None else self.log_json

    @property
    def effective_log_level(self) -> str:
        return "DEBUG" if self.debug else self.log_level
