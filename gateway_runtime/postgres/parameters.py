"""Parameters of PostgreSQL's addresses, with the names of several programs.

These are libpq, SQLAlchemy, Prisma, JDBC and node-postgres.
Values never appear in an error: an unescaped password may have been read as one of them.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

__all__ = ["CONNECTION_PARAMETERS", "POOLED", "join_options", "translate_parameters"]

POOLED = "pgbouncer"
"""Parameter `pgbouncer=true`: each transaction may run on another connection to the server."""
_HOSTS = ("host", "hostaddr", "port")
_IDENTITY = ("user", "password", "dbname")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
CONNECTION_PARAMETERS = frozenset(
    {
        *_HOSTS,
        *_IDENTITY,
        *_FILES,
        "connect_timeout",
        "gsslib",
        "krbsrvname",
        "passfile",
        POOLED,
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "target_session_attrs",
    }
)
"""Parameters of the connection itself. All others are settings of the session."""
_ALIASES = {
    "applicationname": "application_name",
    "connecttimeout": "connect_timeout",
    "currentschema": "search_path",
    "database": "dbname",
    "fallback_application_name": "application_name",
    "logintimeout": "connect_timeout",
    "requiressl": "sslmode",
    "ssl": "sslmode",
    "sslaccept": "sslmode",
    "targetservertype": "target_session_attrs",
}
"""Other names. The name itself wins over them."""
_HARMLESS: Mapping[str, frozenset[str] | None] = {
    "async_fallback": None,
    "channel_binding": None,
    "client_encoding": frozenset({"auto", "unicode", "utf-8", "utf8"}),
    "command_timeout": None,
    "connection_limit": None,
    "gssdelegation": frozenset({"0"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "keepalives": None,
    "keepalives_count": None,
    "keepalives_idle": None,
    "keepalives_interval": None,
    "load_balance_hosts": None,
    "max_protocol_version": None,
    "min_protocol_version": frozenset({"3.0", "3"}),
    "pool_timeout": None,
    "prepare_threshold": None,
    "preparethreshold": None,
    "prepared_statement_cache_size": None,
    "replication": frozenset({"0", "false", "no", "off"}),
    "sockettimeout": None,
    "socket_timeout": None,
    "sslcertmode": frozenset({"allow", "disable"}),
    "sslcompression": None,
    "sslsni": None,
    "statement_cache_size": None,
    "tcpkeepalive": None,
    "tcp_user_timeout": None,
}
"""Parameters without an effect here.

Each has the values for which that does no harm; None: any.

The driver has no channel binding: `sslmode=verify-full` is what protects from a server in the middle.
"""
_SESSION_SETTINGS = frozenset(
    {
        "application_name",
        "backend_flush_after",
        "bytea_output",
        "client_min_messages",
        "commit_delay",
        "constraint_exclusion",
        "cursor_tuple_fraction",
        "datestyle",
        "default_statistics_target",
        "default_table_access_method",
        "default_tablespace",
        "default_transaction_deferrable",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "effective_cache_size",
        "effective_io_concurrency",
        "extra_float_digits",
        "from_collapse_limit",
        "geqo",
        "hash_mem_multiplier",
        "idle_in_transaction_session_timeout",
        "idle_session_timeout",
        "intervalstyle",
        "jit",
        "join_collapse_limit",
        "lc_messages",
        "lock_timeout",
        "log_min_duration_statement",
        "log_statement",
        "maintenance_work_mem",
        "max_parallel_workers",
        "max_parallel_workers_per_gather",
        "plan_cache_mode",
        "random_page_cost",
        "role",
        "row_security",
        "search_path",
        "seq_page_cost",
        "standard_conforming_strings",
        "statement_timeout",
        "synchronous_commit",
        "tcp_keepalives_count",
        "tcp_keepalives_idle",
        "tcp_keepalives_interval",
        "temp_buffers",
        "temp_file_limit",
        "temp_tablespaces",
        "timezone",
        "track_activities",
        "transaction_timeout",
        "vacuum_cost_delay",
        "work_mem",
    }
)
"""Settings of PostgreSQL that may stand in an address by themselves.

All others stand in `options`.
"""
_SSL_MODES = {
    "accept-invalid-certs": "require",
    "allow": "allow",
    "disable": "disable",
    "disabled": "disable",
    "no-verify": "require",
    "prefer": "prefer",
    "preferred": "prefer",
    "require": "require",
    "required": "require",
    "strict": "verify-full",
    "verify-ca": "verify-ca",
    "verify-full": "verify-full",
    **dict.fromkeys(("0", "f", "false", "n", "no", "off"), "disable"),
    **dict.fromkeys(("1", "on", "t", "true", "y", "yes"), "require"),
}
_SESSION_ATTRIBUTES = {
    **{name: name for name in ("any", "prefer-standby", "primary", "read-only", "read-write", "standby")},
    "master": "primary",
    "prefersecondary": "prefer-standby",
    "preferslave": "prefer-standby",
    "secondary": "standby",
    "slave": "standby",
}
_FALSE = ("0", "false", "no", "off")
_TRUE = ("1", "true", "yes", "on")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}(\.[a-z][a-z0-9_]{0,39})?")
_WORD = re.compile(r"(?:\\.|[^\s\\])+")
"""Pattern of a word of `options`.

A backslash escapes a space, and quotation marks belong to the word.
"""
_OPTION = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_.-]*)=(?P<value>.*)", re.DOTALL)


def translate_parameters(pairs: Iterable[tuple[str, str]], *, names_are_safe: bool = True) -> dict[str, str]:
    """Translate decoded parameters to the names and values of libpq.

    `options` become single settings.
    `names_are_safe`: a name may appear in an error.

    Raises:
        ValueError: a parameter is unknown, its value is invalid, or the gateway cannot honour it. The message has no
            value.
    """
    parameters: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for original, value in pairs:
        name = original.lower()
        if not value:
            continue
        if name == "options":
            parameters = _parse_options(value) | parameters
        elif name in _HOSTS:
            parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
        elif name in _HARMLESS:
            _check_harmless(name, value)
            if name == "channel_binding" and value.lower() == "require":
                aliases.setdefault("sslmode", "require")
        elif name == "schema":
            aliases.setdefault("search_path", _quote_schema(value))
        elif name in _ALIASES:
            aliases.setdefault(_ALIASES[name], value)
        elif name in CONNECTION_PARAMETERS or name in _SESSION_SETTINGS:
            parameters[name] = value
        else:
            raise ValueError(_describe_unknown(name, names_are_safe))
    return _convert_values({**aliases, **parameters})


def join_options(parameters: Mapping[str, str]) -> dict[str, str]:
    """Move the settings that may not stand by themselves into `options`."""
    known = CONNECTION_PARAMETERS | _SESSION_SETTINGS
    rare = {name: value for name, value in parameters.items() if name not in known}
    if not rare:
        return dict(parameters)
    words = (re.sub(r"([\\\s])", r"\\\1", f"{name}={value}") for name, value in rare.items())
    others = {name: value for name, value in parameters.items() if name in known}
    return others | {"options": " ".join(f"-c {word}" for word in words)}


def _quote_schema(name: str) -> str:
    """Quote the name of one schema where that is necessary."""
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return name
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _describe_unknown(name: str, is_safe: bool) -> str:
    shown = f" {name}" if is_safe and _NAME.fullmatch(name) else ""
    return (
        f"unknown parameter{shown}: write a setting of PostgreSQL as options=-c%20name%3Dvalue, "
        "and in a user name or password @ as %40, / as %2F, ? as %3F"
    )


def _check_harmless(name: str, value: str) -> None:
    harmless = _HARMLESS[name]
    if harmless is not None and value.lower() not in harmless:
        raise ValueError(f"parameter {name} cannot have this value here")


def _convert_values(parameters: dict[str, str]) -> dict[str, str]:
    for name, convert in _CONVERTERS.items():
        if name in parameters:
            converted = convert(name, parameters.pop(name))
            if converted is not None:
                parameters[name] = converted
    if parameters.get("sslrootcert") == "system":
        parameters["sslmode"] = "verify-full"  # libpq refuses any weaker mode
    for name in _FILES:
        if name in parameters and parameters[name] != "system":
            parameters[name] = _check_file(name, parameters[name])
    return parameters


def _convert_ssl_mode(name: str, value: str) -> str:
    try:
        return _SSL_MODES[value.lower().replace("_", "-")]
    except KeyError:
        modes = "disable, allow, prefer, require, verify-ca, verify-full"
        raise ValueError(f"parameter {name} must be one of {modes}") from None


def _convert_session_attributes(name: str, value: str) -> str:
    try:
        return _SESSION_ATTRIBUTES[value.lower().replace("_", "-")]
    except KeyError:
        names = "any, read-write, read-only, primary, standby, prefer-standby"
        raise ValueError(f"parameter {name} must be one of {names}") from None


def _convert_pooled(name: str, value: str) -> str | None:
    if value.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(f"parameter {name} must be true or false")
    return "true" if value.lower() in _TRUE else None


def _convert_connect_timeout(name: str, value: str) -> str | None:
    try:
        seconds = float(value)
    except ValueError:
        raise ValueError(f"parameter {name} must be a number of seconds") from None
    if not seconds < float("inf"):
        raise ValueError(f"parameter {name} must be a number of seconds")
    return f"{seconds:g}" if seconds > 0 else None  # libpq's 0: no limit of its own


def _convert_negotiation(name: str, value: str) -> str:
    if value.lower() not in ("direct", "postgres"):
        raise ValueError(f"parameter {name} must be postgres or direct")
    return value.lower()


def _convert_tls_version(name: str, value: str) -> str:
    if value not in ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"):
        raise ValueError(f"parameter {name} must be TLSv1.2 or TLSv1.3")
    return value


_CONVERTERS: Mapping[str, Callable[[str, str], str | None]] = {
    "connect_timeout": _convert_connect_timeout,
    POOLED: _convert_pooled,
    "ssl_max_protocol_version": _convert_tls_version,
    "ssl_min_protocol_version": _convert_tls_version,
    "sslmode": _convert_ssl_mode,
    "sslnegotiation": _convert_negotiation,
    "target_session_attrs": _convert_session_attributes,
}


def _check_file(name: str, value: str) -> str:
    file = Path(value).expanduser()
    if not os.access(file, os.R_OK):
        raise ValueError(f"parameter {name}: the file cannot be read")
    return str(file)


def _parse_options(value: str) -> dict[str, str]:
    """Return the settings in `-c name=value` and `--name=value`.

    PgBouncer refuses the startup parameter `options`, and most settings as startup parameters.
    """
    words = [re.sub(r"\\(.)", r"\1", word) for word in _WORD.findall(value.replace("-c+", "-c "))]
    settings: dict[str, str] = {}
    iterator = iter(words)
    for word in iterator:
        text = next(iterator, "") if word == "-c" else word.removeprefix("--" if word.startswith("--") else "-c")
        option = _OPTION.fullmatch(text)
        if option is None or text == word:
            raise ValueError("parameter options must be a list of -c name=value")
        settings[option["name"].replace("-", "_").lower()] = option["value"]
    return settings
