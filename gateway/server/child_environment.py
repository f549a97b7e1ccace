"""Environments of the processes that the gateway starts beside its workers."""

from collections.abc import Mapping
from pathlib import Path

from gateway_runtime.child_processes import select_variables

TOOLS_SERVER_VARIABLES = frozenset(
    {
        "BRAVE_API_KEY",
        "DATABASE_DIRECT_URL",
        "DATABASE_URL",
        "DEBUG",
        "GATEWAY_DATA_DIR",
        "LOG_JSON",
        "LOG_LEVEL",
        "METRICS",
        "METRICS_HOST",
        "POSTGRES_DB",
        "POSTGRES_HOST",
        "POSTGRES_PASSWORD",
        "POSTGRES_PORT",
        "POSTGRES_USER",
        "REDACTION_RULES",
        "SEARCH_BACKEND",
        "SEARCH_TIMEOUT",
        "SEARXNG_URL",
        "TAVILY_API_KEY",
        "TOOLS_ENCRYPTION_KEY",
        "TOOLS_ENCRYPTION_OLD_KEYS",
        "TOOLS_METRICS_PORT",
        "TOOLS_PRIVATE_TARGETS",
        "TOOLS_SERVER_ALLOWED_HOSTS",
        "TOOLS_SERVER_ALLOWED_ORIGINS",
        "TOOLS_SERVER_AUDIENCE",
        "TOOLS_SERVER_GATEWAY_JWKS_FILE",
        "TOOLS_SERVER_GATEWAY_JWKS_URL",
        "TOOLS_SERVER_HOST",
        "TOOLS_SERVER_KEEP_ALIVE_SECONDS",
        "TOOLS_SERVER_MAX_SESSIONS",
        "TOOLS_SERVER_MAX_USER_SESSIONS",
        "TOOLS_SERVER_OAUTH_ISSUER",
        "TOOLS_SERVER_OAUTH_JWKS_URL",
        "TOOLS_SERVER_PORT",
        "TOOLS_SERVER_PUBLIC_URL",
        "TOOLS_SERVER_SECRET",
        "TOOLS_SERVER_SESSION_IDLE_SECONDS",
        "TOOLS_SERVER_STATE_KEY",
        "TOOLS_SERVER_TLS_CERT_FILE",
        "TOOLS_SERVER_TLS_KEY_FILE",
        "TOOLS_SERVER_TLS_KEY_PASSWORD",
    }
)
"""The tool server's settings. The supervisor sets GATEWAY_PARENT_FD itself."""
CONSOLE_VARIABLES = frozenset(
    {
        "CONSOLE_ALLOWED_HOSTS",
        "CONSOLE_ALLOW_ANONYMOUS",
        "CONSOLE_BIND",
        "CONSOLE_HOST",
        "CONSOLE_MAX_SESSIONS",
        "CONSOLE_PORT",
        "CONSOLE_PUBLIC_URL",
        "CONSOLE_SESSION_SECONDS",
    }
)
"""The console's settings.

It gets no key and no database: it is a client of the API.
"""
_PROXY_VARIABLES = frozenset({"ALL_PROXY", "DDGS_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})
"""The tool server's search goes through these."""


def build_tool_server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Select the tool server's settings: no keys of models, callers or Redis.

    OpenTelemetry's variables are for both servers, but the name of the service is the gateway's.
    """
    telemetry = {name for name in environment if name.startswith("OTEL_")} - {"OTEL_SERVICE_NAME"}
    return select_variables(environment, TOOLS_SERVER_VARIABLES | _PROXY_VARIABLES | telemetry)


def build_console_environment(
    environment: Mapping[str, str], gateway_url: str, certificate: Path | None
) -> dict[str, str]:
    """Select the console's settings, and add the gateway's address."""
    address = {"CONSOLE_GATEWAY_URL": gateway_url}
    if certificate is not None:
        address["CONSOLE_GATEWAY_CERT_FILE"] = str(certificate)
    return select_variables(environment, CONSOLE_VARIABLES) | address


def build_simulator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Select the simulator's variables. Its command line has its settings."""
    return select_variables(environment)
